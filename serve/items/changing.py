"""Change the catalogue while it is served: decide what a request changes, and write it as one entry of the journal.

Nothing is written that cannot be applied: every new item has its vector and its semantic ID in each loaded version before the
entry is written. If another replica writes first, the request is decided again behind it.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from serve.contract import change_problems as problems
from serve.contract.problems import ProblemError, no_state_dir, unknown_item
from serve.items.additions import NoVectors, Vectors, VersionAdditions
from serve.items.deciding import ItemRequest, Outcome, Standing, decide, id_of, standing_of
from serve.items.item_journal import ItemJournal
from serve.service import Service

TRIES = 50
"""Entries of other replicas, one after the other, that a request gives way to."""


class Plan(NamedTuple):
    """What a request changes behind an entry of the journal."""

    after: int
    outcomes: list[Outcome]
    operations: list[dict[str, Any]]
    new: list[dict[str, Any]]
    """Items of the operations that nobody has added yet."""


async def change_catalogue(service: Service, requests: Sequence[ItemRequest]) -> list[Outcome]:
    """Do what can be done of several requests about items, in their order, on all replicas; it is durable on return.

    Raises:
        ProblemError: the deployment keeps no changes; the vectors of new items cannot be made now, or the state cannot be
            reached; or too many others write at the same time.
    """
    journal, vectors = service.items, dict[str, Vectors]()
    if journal is None:
        raise no_state_dir()
    try:
        for _ in range(TRIES):
            async with service.changing:
                await service.follow_locked()
                plan = _plan(service, journal, requests)
            if not plan.operations:
                return plan.outcomes
            if plan.new:
                await asyncio.to_thread(_add_vectors, service, plan.new, vectors)
            async with service.changing:
                outcomes = await asyncio.to_thread(_write, service, journal, plan, vectors)
                await service.follow_locked()
            if outcomes is not None:
                return outcomes
    except NoVectors as error:
        raise problems.no_vectors(str(error)) from error
    except OSError as error:
        raise problems.state_not_reached() from error
    raise problems.too_many_writers()


def _plan(service: Service, journal: ItemJournal, requests: Sequence[ItemRequest]) -> Plan:
    """Decide each request as things stand behind those before it."""
    _, run = service.version(None)
    plan, standings = Plan(journal.num_read, [], [], []), dict[str, Standing]()
    added, changed = len(journal.by_id), len(journal.changed) + len(journal.deleted)
    for wanted in requests:
        before = standings.get(wanted.item_id) or standing_of(wanted.item_id, journal, run)
        try:
            outcome, operation, after = decide(wanted, before, service.arguments.images)
            is_new = operation is not None and operation["op"] == "put" and before.last is None
            if is_new and added >= service.arguments.max_added_items:
                raise problems.too_many_added(service.arguments.max_added_items)
            if operation is not None and not is_new and changed >= service.arguments.max_changed_items:
                raise problems.too_many_changed(service.arguments.max_changed_items)
        except ProblemError as error:
            plan.outcomes.append(Outcome("failed", error, wanted.item_id))
            continue
        plan.outcomes.append(outcome)
        standings[wanted.item_id] = after
        if operation is not None:
            plan.operations.append(operation)
            added, changed = added + is_new, changed + (not is_new)
        if is_new and operation is not None:
            plan.new.append(operation["item"])
    return plan


def _by_digest(service: Service) -> Iterator[VersionAdditions]:
    """Return the additions of the loaded versions, one for all versions of the same semantic IDs."""
    found = {loaded.additions.sids_digest: loaded.additions for loaded in service.versions.values() if loaded.additions}
    yield from found.values()


def _add_vectors(service: Service, new: Sequence[dict[str, Any]], vectors: dict[str, Vectors]) -> None:
    """Add the vectors that are not there yet, by the digest of the SIDs that they are for."""
    for additions in list(_by_digest(service)):
        if additions.waiting:
            raise NoVectors(additions.waiting)
        known = vectors.setdefault(additions.sids_digest, {})
        known |= additions.vectors_of([item for item in new if item["item_id"] not in known])


def _write(service: Service, journal: ItemJournal, plan: Plan, vectors: dict[str, Vectors]) -> list[Outcome] | None:
    """Assign the semantic IDs and write the entry; return None if the plan is not up to date any more."""
    every = list(_by_digest(service)) if plan.new else []
    ids = {item["item_id"] for item in plan.new}
    has_all = all(ids <= vectors.get(each.sids_digest, {}).keys() and each.num_read == len(journal.added) for each in every)
    if journal.num_read != plan.after or not has_all:
        return None
    sids: dict[str, dict[str, Any]] = {item: {} for item in ids}
    for additions in every:
        new = [item for item in plan.new if not additions.knows(item["item_id"])]
        for item, given in additions.assign(new, vectors[additions.sids_digest]).items():
            sids[item][additions.sids_digest] = given
    refused = _refused(service, sids)
    operations = [
        operation | ({"sids": sids[id_of(operation)]} if operation["op"] == "put" and id_of(operation) in sids else {})
        for operation in plan.operations
        if id_of(operation) not in refused
    ]
    if operations and not journal.append(plan.after, operations):
        return None
    return [Outcome("failed", refused[each.item_id], each.item_id) if each.item_id in refused else each for each in plan.outcomes]


def _refused(service: Service, sids: dict[str, dict[str, Any]]) -> dict[str, ProblemError]:
    """Return the new items for which the default version has no code left."""
    default = service.versions[service.default].additions
    given = {item: by_digest.get(default.sids_digest) for item, by_digest in sids.items()} if default else {}
    return {item: problems.no_code_left(item, reason) for item, reason in given.items() if isinstance(reason, str)}


def sids_of(service: Service, item_id: str) -> dict[str, list[int]]:
    """Return an item's semantic ID in each loaded version that has it."""
    found = dict[str, list[int]]()
    for name, loaded in service.versions.items():
        place = int(loaded.run.facts.ids.find([item_id])[0])
        if place >= 0:
            found[name] = [code for code in loaded.run.trie.codes[place].tolist() if code >= 0]
    return found


def check_not_deleted(service: Service, item_id: str) -> None:
    """Refuse to show an item that was deleted.

    Raises:
        ProblemError: it was.
    """
    if service.items is not None and item_id in service.items.deleted:
        raise unknown_item(item_id)
