"""Rules of a format: how its files are recognised, and how their columns map to the common form ("theirs" to "ours")."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from digr.data.importing.tables import Table, stem_of

Role = Literal["interactions", "items", "splits", "original_ids", "ignored"]
Pick = Callable[[str], str]
"""Returns the SQL of a column, given its name in the file."""
INTERACTION_COLUMNS = ("user_id", "item_id", "timestamp", "rating", "position", "event")
ITEM_TEXTS = ("title", "description", "brand", "categories", "price", "currency", "image")
ITEM_COLUMNS = ("item_id", *ITEM_TEXTS)
SPLIT_COLUMNS = ("user_id", "history", "target")
SPLIT_NAMES = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid", "test": "test"}


class Reading(NamedTuple):
    """How a table is read."""

    format: str
    role: Role
    columns: Mapping[str, tuple[str, ...]] = {}
    """Ours -> theirs; if there are several, the first that is not empty in a row."""
    select: Callable[[Pick], str] | None = None
    """Used instead of `columns` if they do not suffice: a query over the relation `source` that returns ours as texts."""
    shown: Mapping[str, str] = {}
    """Description of the columns of `select`, for messages: ours -> origin."""
    split: str = ""
    """The split of the rows; empty if they are not a split."""
    standby: bool = False
    """Whether the table is read only if no other file has this role."""
    note: str = ""


class Rule(NamedTuple):
    """Recognises tables by name and columns, and gives their reading."""

    reading: Reading
    pattern: str = ".*"
    """Regular expression for the whole file name without folders, in lower case."""
    needs: tuple[str, ...] = ()
    """Columns that the file must have."""
    accepts: Callable[[Table], bool] = lambda table: True
    """A further condition."""


def match(rules: Sequence[Rule], table: Table) -> list[Reading]:
    """Return the readings of all rules that a table fits."""
    name = stem_of(table.name)
    return [
        rule.reading
        for rule in rules
        if re.fullmatch(rule.pattern, name) and set(rule.needs) <= set(table.columns) and rule.accepts(table)
    ]


def one(**columns: str | tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return a mapping from each of ours to one or more of theirs."""
    return {ours: (theirs,) if isinstance(theirs, str) else theirs for ours, theirs in columns.items()}


def split_of(name: str) -> str:
    """Return the split that a file's name or folder contains; empty if none."""
    for part in reversed(name.lower().split("/")):
        for word in re.split(r"[^a-z]+", part):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return ""
