"""Convert files that DuckDB cannot read into JSON lines, row by row: Python dicts, one JSON object of many rows, XML feeds."""

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from digr.data.importing.fetching import CHUNK
from digr.data.importing.sniffing import Written

KEY, VALUES = "(key)", "(values)"
"""Columns of a JSON object of many rows: the key of each row, and its value if that is a list instead of an object."""
MAX_VALUE = 1 << 26
"""Most characters of one row of a JSON object."""
ROW_TAGS = ("item", "entry")
Convert = Callable[[IO[str], str], Iterator[dict[str, Any] | None]]


def to_json_lines(written: Written, target: Path) -> tuple[Path, int]:
    """Write a file's rows as JSON lines; return the new file and how many rows could not be read.

    Raises:
        ValueError: the file breaks off or stops being valid JSON or XML.
    """
    readers: dict[str, Convert] = {"python dicts": _python_dicts, "json object": _members, "xml": _feed}
    rows = readers[written.kind]
    bad = 0
    with written.path.open(encoding="utf-8", newline="") as source, target.open("w", encoding="utf-8") as out:
        for row in rows(source, written.given.address):
            if row is None:
                bad += 1
            else:
                out.write(json.dumps(row, default=str))
                out.write("\n")
    return target, bad


def _python_dicts(source: IO[str], name: str) -> Iterator[dict[str, Any] | None]:
    """Read lines that are Python dicts, such as Amazon's metadata of 2014; literals only, no code is run."""
    for line in source:
        if not line.strip():
            continue
        try:
            row = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            row = None
        yield row if isinstance(row, dict) else None


class _Stream:
    """Reads JSON from a text of any size, piece by piece."""

    def __init__(self, source: IO[str], name: str) -> None:
        self.source, self.name, self.text, self.place = source, name, source.read(CHUNK), 0
        self.decoder = json.JSONDecoder()

    def more(self) -> bool:
        """Read the next piece and drop what was taken; return whether there was more."""
        found = self.source.read(CHUNK) if len(self.text) - self.place < MAX_VALUE else ""
        self.text, self.place = self.text[self.place :] + found, 0
        return bool(found)

    def peek(self, wanted: str) -> str:
        """Return the next character after white space; it must be one of `wanted`."""
        while True:
            while self.text[self.place : self.place + 1].isspace():
                self.place += 1
            if self.place < len(self.text):
                break
            if not self.more():
                raise ValueError(f"{self.name}: the JSON object ends too early; the file is cut off or broken")
        found = self.text[self.place]
        if found not in wanted:
            at = self.text[self.place : self.place + 20]
            raise ValueError(f"{self.name}: not valid JSON: expected one of {' '.join(wanted)}, found {at!r}")
        return found

    def take(self, wanted: str) -> str:
        """Return the next character and move past it."""
        found = self.peek(wanted)
        self.place += 1
        return found

    def value(self) -> Any:
        """Return the JSON value that starts here and move past it."""
        while True:
            try:
                found, self.place = self.decoder.raw_decode(self.text, self.place)
                return found
            except ValueError as error:
                if not self.more():
                    raise ValueError(f"{self.name}: not valid JSON: {error}") from error


def _members(source: IO[str], name: str) -> Iterator[dict[str, Any]]:
    """Read one JSON object key by key."""
    stream = _Stream(source, name)
    separator = stream.take("{")
    while separator != "}":
        stream.peek('"')
        key = stream.value()
        stream.take(":")
        stream.peek("{[")
        inner = stream.value()
        yield {KEY: key} | (inner if isinstance(inner, dict) else {VALUES: inner})
        separator = stream.take(",}")


def _feed(source: IO[str], name: str) -> Iterator[dict[str, Any]]:
    """Read the items of an RSS or Atom feed; names lose their namespace, and repeated elements become a list."""
    try:
        path: list[Any] = []
        for event, node in ElementTree.iterparse(source, events=("start", "end"), forbid_dtd=True):
            if event == "start":
                path.append(node)
                continue
            path.pop()
            if _tag(node) in ROW_TAGS:
                yield _fields(node)
                for outer in path[-1:]:
                    outer.remove(node)
    except (ElementTree.ParseError, DefusedXmlException) as error:
        raise ValueError(f"{name}: not valid XML: {error}") from error


def _fields(node: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for field in node:
        tag = _tag(field)
        text = (field.text or "").strip() or field.get("href", "")
        if not text:
            continue
        if tag in row:
            row[tag] = [*(row[tag] if isinstance(row[tag], list) else [row[tag]]), text]
        else:
            row[tag] = text
    return row


def _tag(node: Any) -> str:
    return node.tag.rpartition("}")[2]
