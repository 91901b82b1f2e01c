"""An ordered list of JSON values in a folder, which several processes write and read at the same time.

Each entry is a file that appears only when complete and never changes, so all readers agree on the order, nothing is lost in a
crash, and any process may write. The folder must be on a disk that all processes share.
"""

import json
import os
import uuid
from pathlib import Path
from typing import Any, NamedTuple


class Journal(NamedTuple):
    """Entries 1, 2, 3, ... of a folder."""

    folder: Path

    def read(self, after: int) -> list[dict[str, Any]]:
        """Return the entries after number `after`, in order; a folder that does not exist has none."""
        entries: list[dict[str, Any]] = []
        while (entry := self.get(after + len(entries) + 1)) is not None:
            entries.append(entry)
        return entries

    def get(self, number: int) -> dict[str, Any] | None:
        """Return an entry, or None if it does not exist yet."""
        try:
            return json.loads(self._path(number).read_text())
        except FileNotFoundError:
            return None

    def claim(self, number: int, value: dict[str, Any]) -> dict[str, Any]:
        """Write an entry unless it exists; return the entry that is there now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".{uuid.uuid4().hex}"
        with draft.open("w") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, self._path(number))  # fails if the file exists, unlike a rename
        except FileExistsError:
            return json.loads(self._path(number).read_text())
        finally:
            draft.unlink()
        return value

    def append(self, value: dict[str, Any], after: int) -> int:
        """Write an entry after all others; return its number.

        Args:
            after: number up to which the caller knows all entries.
        """
        value = value | {"entry": uuid.uuid4().hex}  # distinguishes it from an equal value of another writer
        number = after + 1
        while self.claim(number, value) != value:
            number += 1
        return number

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:09d}.json"
