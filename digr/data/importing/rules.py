"""What a format says of its files: which they are, what they hold, and how their columns map to ours."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from digr.data.importing.tables import Table, stem_of

Role = Literal["interactions", "items", "splits", "original_ids", "ignored"]
Pick = Callable[[str], str]
"""Gives the SQL of a column by the name it has in a file."""
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
    """Ours -> theirs; of several, the first that is not empty in a row."""
    select: Callable[[Pick], str] | None = None
    """Instead, a query over the relation `source` with our columns as texts, for what is more than a choice of columns."""
    shown: Mapping[str, str] = {}
    """What to say of the columns of `select`: ours -> where from."""
    split: str = ""
    """Which split the rows belong to."""
    standby: bool = False
    """Whether it is read only where no other file has this role."""
    note: str = ""


class Rule(NamedTuple):
    """Recognises tables by name and columns, and says how they are read."""

    reading: Reading
    pattern: str = ".*"
    """Of the whole file name without folders, in lower case."""
    needs: tuple[str, ...] = ()
    """Columns that the file must have."""
    accepts: Callable[[Table], bool] = lambda table: True
    """What else must hold."""


def match(rules: Sequence[Rule], table: Table) -> list[Reading]:
    """Return the readings of all rules that a table fits."""
    name = stem_of(table.name)
    return [
        rule.reading
        for rule in rules
        if re.fullmatch(rule.pattern, name) and set(rule.needs) <= set(table.columns) and rule.accepts(table)
    ]


def one(**columns: str | tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return a mapping of columns in which each of ours has one or more of theirs."""
    return {ours: (theirs,) if isinstance(theirs, str) else theirs for ours, theirs in columns.items()}


def split_of(name: str) -> str:
    """Return which split a file's name or folder says that it is; empty for none."""
    for part in reversed(name.lower().split("/")):
        for word in re.split(r"[^a-z]+", part):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return ""
