"""The journal of the catalogue: items that are added, changed and taken out after the run, in one order for all replicas.

An entry holds operations that were applied together: `put` (an item with its semantic IDs in the versions that were loaded where
it was written), `change` (some facts of an item) and `delete`. What is no entry or no operation is set aside, and the
rest goes on.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from digr.serving.journal import Entry, Journal
from digr.serving.state import StateStore
from serve.contract.item_schemas import ItemChange, NewItem

MAX_NAMED = 100
"""Files that are named as set aside at most."""
FACTS = tuple(ItemChange.model_fields)
"""Fields of an item that may change; its interests and semantic IDs stay."""


class AddedEntry(NamedTuple):
    """The new items of an entry."""

    number: int
    items: list[dict[str, Any]]
    """As fields of `NewItem`."""
    sids: dict[str, Any]
    """By the digest of a version's SIDs and item id: codes, or the reason why it has none; as they were read."""


class ItemJournal:
    """The journal as far as this replica has read it."""

    def __init__(self, state: StateStore) -> None:
        self._journal = Journal(state, "items")
        self.num_read = 0
        """Entries read, those set aside included."""
        self.added: list[AddedEntry] = []
        self.by_id: dict[str, dict[str, Any]] = {}
        """Added items as they were added first; the first of an id counts."""
        self.changed: dict[str, dict[str, Any]] = {}
        """Facts of items, added ones or the run's, that differ from those they began with."""
        self.deleted: set[str] = set()
        self.unavailable: set[str] = set()
        self.touched: list[str] = []
        """Ids of changed and deleted items, in order, as often as they were touched."""
        self.set_aside: dict[str, str] = {}
        """Files, and operations of files, that could not be read, with the reason."""
        self.read()

    def read(self) -> None:
        """Read what other replicas wrote."""
        for entry in self._journal.read(self.num_read):
            self.num_read = entry.number
            if entry.value is None:
                self._leave(entry.name, entry.reason or "")
            else:
                self._apply(entry, entry.value)

    def append(self, after: int, operations: Sequence[dict[str, Any]]) -> bool:
        """Write operations as the entry behind number `after`; return False if another replica was faster."""
        return self._journal.append_at(after + 1, {"operations": list(operations)})

    def hidden(self) -> list[str]:
        """Return the ids of items that may not be listed: deleted or unavailable ones."""
        return list(self.deleted | self.unavailable)

    def _apply(self, entry: Entry, value: dict[str, Any]) -> None:
        items, sids = list[dict[str, Any]](), dict[str, Any]()
        for name, operation in _operations(entry.name, value):
            try:
                self._apply_one(operation, items, sids)
            except ValidationError as error:
                wrong = error.errors(include_url=False, include_input=False)[0]
                self._leave(name, f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}")
            except (TypeError, ValueError, KeyError) as error:
                self._leave(name, f"it is no operation on the catalogue: {error!r}")
        if items:
            self.added.append(AddedEntry(entry.number, items, sids))

    def _apply_one(self, operation: dict[str, Any], items: list[dict[str, Any]], sids: dict[str, Any]) -> None:
        kind = operation.get("op", "put")
        if kind == "put":
            item = NewItem.model_validate(_as_now(operation["item"])).model_dump()
            self._put(item, items)
            given = operation.get("sids", {})
            sids |= {item["item_id"]: given} if isinstance(given, dict) else {}
        elif kind == "change":
            facts = ItemChange.model_validate(operation["facts"]).model_dump(exclude_unset=True)
            self._change(_id_of(operation), facts)
        elif kind == "delete":
            self.deleted.add(_id_of(operation))
            self.touched.append(_id_of(operation))
        else:
            raise ValueError(f"unknown op {kind!r}")

    def _put(self, item: dict[str, Any], items: list[dict[str, Any]]) -> None:
        """Add an item, or bring a deleted one back with the facts it has now."""
        name = item["item_id"]
        if name not in self.by_id and name not in self.deleted:
            self.by_id[name] = item
            items.append(item)
            self._mark(name, item)
        elif name in self.deleted:
            self.deleted.discard(name)
            self._change(name, {fact: item[fact] for fact in FACTS})

    def _change(self, item_id: str, facts: dict[str, Any]) -> None:
        self.changed[item_id] = self.changed.get(item_id, {}) | facts
        self.touched.append(item_id)
        self._mark(item_id, facts)

    def _mark(self, item_id: str, facts: dict[str, Any]) -> None:
        if "available" in facts:
            (self.unavailable.discard if facts["available"] else self.unavailable.add)(item_id)

    def _leave(self, name: str, reason: str) -> None:
        if len(self.set_aside) < MAX_NAMED:
            self.set_aside[name] = reason[:500]


def _operations(name: str, value: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the operations of an entry with their names; an entry of an older program is one operation itself."""
    if "operations" not in value:
        yield name, value
        return
    found = value["operations"]
    for number, operation in enumerate(found if isinstance(found, list) else [found], 1):
        yield f"{name} operation {number}", operation if isinstance(operation, dict) else {"op": operation}


def _id_of(operation: dict[str, Any]) -> str:
    return NewItem.model_validate({"item_id": operation["item_id"], "title": "-"}).item_id


def _as_now(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item of the journal in today's form; an older entry has its price in USD."""
    if not isinstance(item, dict) or "price_usd" not in item:
        return item
    price = item["price_usd"]
    kept = {name: value for name, value in item.items() if name != "price_usd"}
    return kept | {"price": price, "currency": None if price is None else "USD"}
