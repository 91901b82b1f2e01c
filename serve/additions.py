"""Items that are added after the run: one list for all replicas, and in each version a semantic ID that never changes.

The list and the semantic IDs are journals in the state folder, which all replicas read in the same order. If a version has no
semantic ID for an item yet, the first replica writes it and all others read it. So replicas agree without communication, and
a restarted one finds all items again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from digr.artifacts import Store
from digr.config.models import EncoderConfig
from digr.models.encoders import Encode
from digr.serving.journal import Journal
from digr.serving.new_items import Extender, load_extender, new_vectors, sid_of_new_item
from serve.catalogue import ITEM_SCHEMA, LABEL_SCHEMA, Additions, RunTables
from serve.settings import VersionSettings

GetEncoder = Callable[[EncoderConfig], Encode]
"""Returns the encoder of a config, which is loaded at its first use."""


class ItemList:
    """The journal of added items, as far as this replica has read it."""

    def __init__(self, state_dir: Path) -> None:
        self._journal = Journal(state_dir / "items")
        self.items: list[dict[str, Any]] = []
        """Items in the order of adding; if two replicas added the same id at once, both are listed and the first counts."""
        self.by_id: dict[str, dict[str, Any]] = {}
        self.read()

    def read(self) -> None:
        """Read the items that other replicas added."""
        for entry in self._journal.read(len(self.items)):
            item = _as_now(entry["item"])
            self.items.append(item)
            self.by_id.setdefault(item["item_id"], item)

    def add(self, item: dict[str, Any]) -> None:
        """Append an item to the list."""
        self._journal.append({"item": item}, len(self.items))


def _as_now(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item of the journal in today's form; an older entry has its price in USD."""
    if "price_usd" not in item:
        return item
    price = item["price_usd"]
    kept = {name: value for name, value in item.items() if name != "price_usd"}
    return kept | {"price": price, "currency": None if price is None else "USD"}


class VersionAdditions:
    """The added items in one version; follows the list and never goes back."""

    def __init__(self, tables: RunTables, version: VersionSettings, state_dir: Path, get_encoder: GetEncoder) -> None:
        self.journal = Journal(state_dir / "sids" / tables.sids_digest)
        self.refused: dict[str, str] = {}
        """Items for which the version has no code left, with the reason."""
        self._tables, self._version, self._get_encoder = tables, version, get_encoder
        self._extender: Extender | None = None
        self._num_read = 0
        self._seen: set[str] = set()
        self._items: list[dict[str, Any]] = []
        self._codes: list[list[int]] = []

    def follow(self, items: list[dict[str, Any]]) -> bool:
        """Add new items, and assign missing semantic IDs; return whether there were any."""
        before = len(self._items)
        for number, item in enumerate(items[self._num_read :], self._num_read + 1):
            # a later run has it already, or two replicas added it at once
            is_known = self._tables.ids.find([item["item_id"]])[0] >= 0 or item["item_id"] in self._seen
            if not is_known:
                given = self.journal.get(number) or self.journal.claim(number, self._give_sid(item))
                if given["refused"]:
                    self.refused[item["item_id"]] = given["refused"]
                else:
                    self._items.append(item)
                    self._codes.append(given["codes"])
            self._seen.add(item["item_id"])
            self._num_read = number
        return len(self._items) > before

    def additions(self) -> Additions | None:
        """Return all items that have a semantic ID here; None if there are none."""
        if not self._items:
            return None
        labels = [
            {"owner": "item", "owner_id": item["item_id"], "rank": rank, "interest": interest, "probability": 1.0, "label": 1}
            for item in self._items
            for rank, interest in enumerate(item["interests"])
        ]
        codes = np.array(self._codes, np.int32).reshape(len(self._codes), len(self._tables.level_sizes))
        return Additions(item_table(self._items), codes, pa.Table.from_pylist(labels, schema=LABEL_SCHEMA))

    def sid_of(self, item_id: str) -> list[int] | None:
        """Return an added item's codes."""
        found = (codes for item, codes in zip(self._items, self._codes, strict=True) if item["item_id"] == item_id)
        codes = next(found, None)
        return None if codes is None else [code for code in codes if code >= 0]

    def _give_sid(self, item: dict[str, Any]) -> dict[str, Any]:
        extender = self._extender = self._extender or load_extender(Store(self._version.run_dir, self._version.variant))
        encode = self._get_encoder(extender.embeddings.encoder)
        vector = new_vectors(extender, item_table([item]), [item["interests"]], encode)[0]
        added = np.array(self._codes, np.int32).reshape(-1, self._tables.codes.shape[1])
        try:
            return {"codes": sid_of_new_item(extender, [self._tables.codes, added], vector).tolist(), "refused": None}
        except ValueError as error:
            return {"codes": None, "refused": str(error)}


def item_table(items: list[dict[str, Any]]) -> pa.Table:
    """Return added items as rows of `items`; they have no image."""
    return pa.Table.from_pylist([{name: item.get(name) for name in ITEM_SCHEMA.names} for item in items], schema=ITEM_SCHEMA)
