"""What the journal of the catalogue is in one version: semantic IDs for added items, which never change, and changed facts.

An item's semantic ID stands in its entry, or, for a version that was not loaded where the entry was written, in a journal of the
version's SIDs, into which the first replica writes it. Every replica takes entries in order and stops at one that it cannot
give semantic IDs to yet. So replicas agree without communication, and a restarted one finds all items again.
"""

from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int32

from digr.artifacts import Store
from digr.config.models import EncoderConfig
from digr.models.encoders import Encode
from digr.serving.journal import Journal
from digr.serving.new_items import Extender, TakenCodes, load_extender, new_vectors, sid_of_new_item
from digr.serving.state import StateStore
from serve.items.catalogue import ITEM_SCHEMA, LABEL_SCHEMA, Additions, Changes, RunTables
from serve.items.item_journal import AddedEntry, ItemJournal
from serve.settings import VersionSettings

GetEncoder = Callable[[EncoderConfig], Encode]
"""Returns the encoder of a config, which is loaded at its first use."""
Vectors = dict[str, Float[np.ndarray, " D"]]
"""Vectors of new items by their ids."""


class NoVectors(RuntimeError):
    """What makes the vectors of new items cannot be reached now."""


class VersionAdditions:
    """The added and changed items in one version; follows the journal and never goes back."""

    def __init__(self, tables: RunTables, version: VersionSettings, state: StateStore, get_encoder: GetEncoder) -> None:
        self.sids_digest = tables.sids_digest
        self.journal = Journal(state, f"sids/{tables.sids_digest}")
        self.refused: dict[str, str] = {}
        """Items that have no semantic ID in the version, with the reason."""
        self.waiting: str | None = None
        """Why the version has not all added items yet; None if it has."""
        self.num_read = 0
        """Entries of the journal's `added` that the version has."""
        self._tables, self._version, self._get_encoder = tables, version, get_encoder
        self._extender: Extender | None = None
        self._taken: TakenCodes | None = None
        self._rows = set[str]()
        self._additions: Additions | None = None
        self._changed: pa.Table = ITEM_SCHEMA.empty_table()
        self._num_touched = 0

    def follow(self, journal: ItemJournal) -> None:
        """Add new items, assign missing semantic IDs, and change facts.

        Raises:
            OSError: the journal of the version's SIDs cannot be reached; what was followed until then is kept.
        """
        items, codes = list[dict[str, Any]](), list[Int32[np.ndarray, " L"]]()
        self.waiting = None
        try:
            for entry in journal.added[self.num_read :]:
                self._take(entry, items, codes)
                self.num_read += 1
        except NoVectors as error:
            self.waiting = str(error)
        finally:
            if items:
                self._extend(items, codes)
            touched = journal.touched[self._num_touched :]
            early = (item["item_id"] for item in items)  # changed before the version had them
            self._change(journal, {*touched, *(item for item in early if item in journal.changed)})
            self._num_touched += len(touched)

    @property
    def revision(self) -> tuple[int, int]:
        """What differs when there is something new to serve."""
        return len(self._rows), self._num_touched

    def additions(self) -> Additions | None:
        """Return all items that have a semantic ID here; None if there are none."""
        return self._additions

    def changes(self, journal: ItemJournal) -> Changes | None:
        """Return what differs from the run and its additions; None if nothing does."""
        hidden = journal.hidden()
        return Changes(self._changed, hidden) if hidden or len(self._changed) else None

    def knows(self, item_id: str) -> bool:
        """Whether an item is of the run or has been added."""
        return item_id in self._rows or item_id in self.refused or bool(self._tables.ids.find([item_id])[0] >= 0)

    def vectors_of(self, items: Sequence[dict[str, Any]]) -> Vectors:
        """Make the vectors of new items in one call of the encoder.

        Raises:
            NoVectors: the encoder or the run's quantiser cannot be reached.
        """
        if not items:
            return {}
        extender = self._load_extender()
        try:
            encode = self._get_encoder(extender.embeddings.encoder)
            vectors = new_vectors(extender, item_table(items), [item["interests"] for item in items], encode)
        except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
            raise NoVectors(f"the vectors of new items cannot be made now: {error}") from error
        return {item["item_id"]: vector for item, vector in zip(items, vectors, strict=True)}

    def assign(self, items: Sequence[dict[str, Any]], vectors: Vectors) -> dict[str, Any]:
        """Return each new item's codes, or the reason why there are none, as the journals keep them; nothing is added yet."""
        extender, taken, given = self._load_extender(), self._taken_codes().draft(), dict[str, Any]()
        for item in items:
            try:
                sid = sid_of_new_item(extender, taken, vectors[item["item_id"]])
                taken.add(sid)
                given[item["item_id"]] = sid.tolist()
            except ValueError as error:
                given[item["item_id"]] = str(error)
        return given

    def _load_extender(self) -> Extender:
        try:
            self._extender = self._extender or load_extender(Store(self._version.run_dir, self._version.variant))
        except (OSError, ValueError) as error:
            raise NoVectors(f"the quantiser of {self._version.run_dir} cannot be read: {error}") from error
        return self._extender

    def _take(self, entry: AddedEntry, items: list[dict[str, Any]], codes: list[Int32[np.ndarray, " L"]]) -> None:
        """Give the new items of an entry their semantic IDs: from the entry, else from the journal of the version's SIDs."""
        new = [item for item in entry.items if not self.knows(item["item_id"])]
        given = {item["item_id"]: entry.sids.get(item["item_id"], {}).get(self.sids_digest) for item in new}
        missing = [item for item in new if given[item["item_id"]] is None]
        if missing:
            given |= self._claimed(entry.number, missing)
        for item in new:
            try:
                sid = _as_sid(given[item["item_id"]])
                self._taken_codes().check(sid, self._tables.level_sizes)
            except ValueError as error:
                self.refused[item["item_id"]] = str(error)
                continue
            self._taken_codes().add(sid)
            self._rows.add(item["item_id"])
            items.append(item)
            codes.append(sid)

    def _claimed(self, number: int, missing: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what the journal of the version's SIDs has for an entry's items; write it if it is not there."""
        found = self.journal.get(number)
        if found is None:
            vectors = self.vectors_of(missing)
            found = self.journal.claim(number, {"sids": self.assign(missing, vectors)})
        value = found.value or {}
        if "codes" in value:  # of an older program, whose entries have one item each
            return {missing[0]["item_id"]: value["codes"] if value["codes"] is not None else value.get("refused")}
        given = value.get("sids")
        given = given if isinstance(given, dict) else {}
        reason = f"{found.name}: {found.reason or 'it has no semantic ID for the item'}"
        return {item["item_id"]: given.get(item["item_id"], reason) for item in missing}

    def _taken_codes(self) -> TakenCodes:
        if self._taken is None:
            self._taken = TakenCodes(self._tables.codes)
        return self._taken

    def _extend(self, items: list[dict[str, Any]], codes: list[Int32[np.ndarray, " L"]]) -> None:
        labels = [
            {"owner": "item", "owner_id": item["item_id"], "rank": rank, "interest": interest, "probability": 1.0, "label": 1}
            for item in items
            for rank, interest in enumerate(item["interests"])
        ]
        new = Additions(item_table(items), np.stack(codes), pa.Table.from_pylist(labels, schema=LABEL_SCHEMA))
        old = self._additions
        if old is not None:
            items_now, labels_now = pa.concat_tables([old.items, new.items]), pa.concat_tables([old.labels, new.labels])
            new = Additions(items_now, np.concatenate([old.codes, new.codes]), labels_now)
        self._additions = new

    def _change(self, journal: ItemJournal, touched: set[str]) -> None:
        """Make the rows of touched items anew from what they began with."""
        names = [name for name in touched if name in journal.changed and self.knows(name) and name not in self.refused]
        if not names:
            return
        places = self._tables.ids.find(names).tolist()
        own = self._tables.rows.take([place for place in places if place >= 0]).to_pylist()
        own += [journal.by_id[name] for name, place in zip(names, places, strict=True) if place < 0]
        now = item_table([row | journal.changed[row["item_id"]] for row in own])
        kept = self._changed.filter(pc.invert(pc.is_in(self._changed["item_id"], now["item_id"].combine_chunks())))
        self._changed = pa.concat_tables([kept, now]).combine_chunks()


def item_table(items: Sequence[dict[str, Any]]) -> pa.Table:
    """Return added items as rows of `items`."""
    return pa.Table.from_pylist([{name: item.get(name) for name in ITEM_SCHEMA.names} for item in items], schema=ITEM_SCHEMA)


def _as_sid(given: Any) -> Int32[np.ndarray, " L"]:
    """Read the codes of a journal.

    Raises:
        ValueError: they are none; the message is the reason, where one was written in their place.
    """
    if isinstance(given, str):
        raise ValueError(given)
    if not isinstance(given, list) or not given or any(type(code) is not int or not -1 <= code < 2**31 for code in given):
        raise ValueError(f"expected a list of codes, found {given!r}"[:200])
    return np.array(given, np.int32)
