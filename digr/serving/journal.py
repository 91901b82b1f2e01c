"""An ordered list of JSON objects in a state, which several processes write and read at the same time.

Each entry is a file that appears only when complete and never changes, so all readers agree on the order, nothing is lost in a
crash, and any process may write.
"""

import json
import uuid
from typing import Any, NamedTuple

from pydantic_core import from_json

from digr.serving.state import MAX_FILE_BYTES, StateStore

_BLOCK = 64
"""Files read at once at most."""


class Entry(NamedTuple):
    """An entry: its value, or why it has none."""

    number: int
    name: str
    """Name of its file in the state."""
    value: dict[str, Any] | None
    reason: str | None = None
    """Why the file is no entry; None if it is one."""


class Journal(NamedTuple):
    """Entries 1, 2, 3, ... of a folder."""

    state: StateStore
    folder: str

    def read(self, after: int) -> list[Entry]:
        """Return the entries after number `after`, in order; a folder that does not exist has none."""
        entries: list[Entry] = []
        block = 1
        while True:
            start = after + len(entries) + 1
            names = [self._name(number) for number in range(start, start + block)]
            for number, content in enumerate(self.state.read_many(names), start):
                if content is None:
                    return entries
                entries.append(_entry(number, self._name(number), content))
            block = min(2 * block, _BLOCK)

    def get(self, number: int) -> Entry | None:
        """Return an entry, or None if it does not exist yet."""
        name = self._name(number)
        content = self.state.read_many([name])[0]
        return None if content is None else _entry(number, name, content)

    def claim(self, number: int, value: dict[str, Any]) -> Entry:
        """Write an entry unless it exists; return the entry that is there now."""
        name = self._name(number)
        if self.state.create(name, json.dumps(value, allow_nan=False).encode()):
            return Entry(number, name, value)
        found = self.get(number)
        if found is None:
            raise OSError(f"{name}: it exists and cannot be read; entries must never be removed")
        return found

    def append(self, value: dict[str, Any], after: int) -> int:
        """Write an entry after all others; return its number.

        Args:
            after: number up to which the caller knows all entries.
        """
        number = after + 1
        while not self.append_at(number, value):
            number += 1
        return number

    def append_at(self, number: int, value: dict[str, Any]) -> bool:
        """Write an entry if it becomes the one of this number; return whether it did."""
        value = value | {"entry": uuid.uuid4().hex}  # distinguishes it from an equal value of another writer
        return self.claim(number, value).value == value

    def _name(self, number: int) -> str:
        return f"{self.folder}/{number:09d}.json"


def _entry(number: int, name: str, content: bytes | IsADirectoryError) -> Entry:
    """Read the bytes of an entry; whatever they are, they give one."""
    if isinstance(content, IsADirectoryError):
        return Entry(number, name, None, "it is a folder")
    if len(content) > MAX_FILE_BYTES:
        return Entry(number, name, None, f"it is larger than {MAX_FILE_BYTES} bytes")
    try:
        value = from_json(content)
    except ValueError as error:
        return Entry(number, name, None, f"it is not JSON: {error}")
    if not isinstance(value, dict):
        return Entry(number, name, None, "it is not a JSON object")
    return Entry(number, name, value)
