"""Histories of interactions in memory, made as the job makes them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from digr.config import build_config
from digr.data.common_form import table_source
from digr.data.preparing import prepare_tables
from digr.tables import TABLES


class Made(NamedTuple):
    table: pa.Table
    rejected: dict[str, int]
    facts: dict[str, Any]
    interactions: pa.Table


def build_histories(
    interactions: pa.Table, split: str, max_history: int, published: Mapping[str, pa.Table] = {}, **data: Any
) -> Made:
    """Prepare interactions of a catalogue that has every item they name, each with its id as its title."""
    ids = pa.concat_tables([interactions.select(["item_id"])]).column("item_id")
    for table in published.values():
        ids = pa.chunked_array([*ids.chunks, *table["target"].chunks, *pc.list_flatten(table["history"]).chunks], pa.string())
    distinct = pc.unique(ids)
    empty = {name: pa.nulls(len(distinct), TABLES["items"].schema.field(name).type) for name in TABLES["items"].schema.names}
    items = pa.table(empty | {"item_id": distinct, "title": distinct}, schema=TABLES["items"].schema)
    chosen = {"split": split, "max_history": max_history} | ({"source": "parquet", "path": "x"} if published else {}) | data
    config = build_config({"run": {"dir": "unused"}, "data": chosen}, "here")
    made = prepare_tables(table_source(items, interactions, published), config.data)
    return Made(made.histories, made.rejected["histories"], made.facts, made.interactions)
