"""Rows of `interests` and `interest_labels`, written down one interest at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from digr.tables import nest_interests

GIVEN = {
    "interests": {"confidence": None, "miners": ["m"], "consensus": 1.0},
    "interest_labels": {"probability": 0.9, "label": 1, "labelers": ["classifier"]},
}
"""What an interest has where a test does not say."""


def nest_rows(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    items: Sequence[str] = (),
    users: Sequence[str] = (),
    quality: Sequence[float] | None = None,
) -> pa.Table:
    """Return the table of some items and users; each row is an interest with owner_id, interest and what else is said of it."""
    owner_ids = [*items, *users]
    owners: dict[str, Any] = {"owner": ["item"] * len(items) + ["user"] * len(users), "owner_id": owner_ids}
    if name == "interest_labels":
        owners["quality"] = list(quality) if quality is not None else [1.0] * len(owner_ids)
    place = {key: row for row, key in enumerate(zip(owners["owner"], owner_ids, strict=True))}
    ordered = sorted(rows, key=lambda row: place[row.get("owner", "item"), row["owner_id"]])
    row = np.array([place[one.get("owner", "item"), one["owner_id"]] for one in ordered], np.int64)
    names = dict.fromkeys(["interest", *GIVEN[name], *(key for one in rows for key in one)])
    fields = {key: [(GIVEN[name] | dict(one)).get(key) for one in ordered] for key in names if key not in ("owner", "owner_id")}
    return nest_interests(name, {key: pa.array(values) for key, values in owners.items()} if owner_ids else owners, row, fields)
