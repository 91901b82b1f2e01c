"""Decide what one request about an item changes, given how the item stands; nothing is read or written here."""

from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from digr.config.images import ImagesConfig
from digr.images.addresses import RefusedAddress, check_address, scheme_of
from serve.contract import change_problems as problems
from serve.contract.item_schemas import ItemChange, NewItem
from serve.contract.problems import ProblemError, unknown_item
from serve.items.catalogue import ServedRun
from serve.items.item_journal import FACTS, ItemJournal

Operation = dict[str, Any]
"""An operation of the journal, see `serve.items.item_journal`."""


class ItemRequest(NamedTuple):
    """One change that a request asks for."""

    op: Literal["add", "change", "delete", "upsert"]
    """"upsert" adds an unknown item and changes a known one."""
    item_id: str
    facts: dict[str, Any]
    """Those that are given: for "add" of `NewItem`, for "change" of `ItemChange`, for "upsert" of either, not yet checked."""


class Standing(NamedTuple):
    """How an item stands."""

    last: dict[str, Any] | None
    """Its facts and interests now, or before it was deleted; None for an item that never was."""
    is_deleted: bool = False


class Outcome(NamedTuple):
    """What a request does, or why it cannot be done."""

    status: Literal["added", "changed", "unchanged", "failed"]
    problem: ProblemError | None = None
    item_id: str = ""


def standing_of(item_id: str, journal: ItemJournal, run: ServedRun) -> Standing:
    """Return how an item stands in the journal and the default version."""
    place = int(run.facts.ids.find([item_id])[0])
    added = journal.by_id.get(item_id)
    if place < 0 and added is None:
        return Standing(None)
    if place < 0 and added is not None:
        return Standing(added | journal.changed.get(item_id, {}), item_id in journal.deleted)
    row = run.facts.table.take([place]).to_pylist()[0]
    facts = {name: row.get(name) for name in FACTS}
    facts |= {"categories": [name for name in row["categories"] or [] if name], "available": item_id not in journal.unavailable}
    interests = added["interests"] if added else run.interests_of(place)
    return Standing({"item_id": item_id} | facts | {"interests": interests}, item_id in journal.deleted)


def decide(wanted: ItemRequest, before: Standing, images: ImagesConfig) -> tuple[Outcome, Operation | None, Standing]:
    """Return what a request does, its operation, if there is one, and how the item stands then.

    Args:
        images: which addresses of images are read.

    Raises:
        ProblemError: it cannot be done.
    """
    _check_image(wanted.facts.get("image_uri"), images)
    is_there = before.last is not None and not before.is_deleted
    if wanted.op == "delete":
        if before.last is None:
            raise unknown_item(wanted.item_id)
        operation = {"op": "delete", "item_id": wanted.item_id} if is_there else None
        return Outcome("changed" if is_there else "unchanged", None, wanted.item_id), operation, Standing(before.last, True)
    if wanted.op == "add" or (wanted.op == "upsert" and not is_there):
        return _add(wanted, before)
    if not is_there or before.last is None:
        raise unknown_item(wanted.item_id)
    return _change(wanted, before.last)


def _add(wanted: ItemRequest, before: Standing) -> tuple[Outcome, Operation | None, Standing]:
    """Add an item, or bring a deleted one back, which keeps its semantic ID and so its interests."""
    try:
        item = NewItem.model_validate({"item_id": wanted.item_id} | wanted.facts).model_dump()
    except ValidationError as error:
        raise problems.invalid_line(error) from None
    if before.last is not None and not before.is_deleted:
        if item != before.last:
            raise problems.item_exists(wanted.item_id)
        return Outcome("unchanged", None, wanted.item_id), None, before
    if before.last is not None and item["interests"] != before.last["interests"]:
        raise problems.interests_stay(wanted.item_id, before.last["interests"])
    return Outcome("added", None, wanted.item_id), {"op": "put", "item": item}, Standing(item)


def _change(wanted: ItemRequest, last: dict[str, Any]) -> tuple[Outcome, Operation | None, Standing]:
    given = dict(wanted.facts)
    if wanted.op == "upsert" and given.pop("interests", last["interests"]) != last["interests"]:
        raise problems.interests_stay(wanted.item_id, last["interests"])
    try:
        facts = ItemChange.model_validate(given).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise problems.invalid_line(error) from None
    facts = {name: value for name, value in facts.items() if value != last[name]}
    if not facts:
        return Outcome("unchanged", None, wanted.item_id), None, Standing(last)
    operation = {"op": "change", "item_id": wanted.item_id, "facts": facts}
    return Outcome("changed", None, wanted.item_id), operation, Standing(last | facts)


def _check_image(uri: Any, images: ImagesConfig) -> None:
    """Refuse an address that is not read for a stranger: one that is not https or inline, or that the settings forbid."""
    if not isinstance(uri, str):
        return  # none, or what the contract refuses
    try:
        if scheme_of(uri, images) not in ("https", "data"):
            raise problems.image_not_allowed("it must be an https:// or a data: address")
        check_address(uri, images)
    except RefusedAddress as error:
        raise problems.image_not_allowed(str(error)) from None


def id_of(operation: Operation) -> str:
    """Return the item of an operation."""
    return operation["item"]["item_id"] if operation["op"] == "put" else operation["item_id"]
