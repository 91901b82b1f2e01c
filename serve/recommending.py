"""From a request to its list: check history and filters, search or take popular items, add reasons."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from jaxtyping import Bool, Int

from digr.policy.decoding.search import Recommendation
from digr.ranking.steering import find_interest
from serve.catalogue import ServedRun, places_array
from serve.decoding import Job
from serve.paging import Page, read_page
from serve.problems import (
    ProblemError,
    beam_too_wide,
    cannot_steer,
    currency_needed,
    empty_history,
    k_too_large,
    no_index,
    no_items_left,
    two_histories,
    unknown_interest,
    unknown_items,
)
from serve.reordering import reorder_popular, reordering_of
from serve.schemas import ItemFilter, Problem, RecommendedItem, RecommendReply, RecommendRequest, Source
from serve.service import Service


class CheckedRequest(NamedTuple):
    """A request after its checks, with items and filters resolved."""

    model: str
    run: ServedRun
    request: RecommendRequest
    places: list[int]
    """Known items of the history, oldest first."""
    ignored: list[str]
    beam_width: int
    allowed: Bool[np.ndarray, " N"] | None
    interests: str | None
    """Interests of a known user, as the prompt shows them."""
    page: Page | None
    """Page of the list; None if the request has no cursor."""
    earlier: list[int]
    """Places of the items of earlier pages."""
    is_behind: bool
    """Whether the page is behind the `max_paged` items that are ranked."""
    has_items: bool
    """Whether there is any item to list."""

    @property
    def is_decoded(self) -> bool:
        """Whether the policy is asked; else the list is by popularity."""
        return bool(self.places) and self.has_items and not self.is_behind


class MadeList(NamedTuple):
    """A list and who made it."""

    source: Source
    places: Int[np.ndarray, " M"]
    scores: list[float | None]
    sources: list[list[str]] | None = None
    contributions: list[dict[str, float]] | None = None
    proven: bool | None = None


async def answer_request(service: Service, request: RecommendRequest) -> RecommendReply:
    """Answer one request.

    Raises:
        ProblemError: it cannot be answered.
    """
    checked = check_request(service, request)
    job = _job(service, checked) if checked.is_decoded else None
    found = await service.line.decode([job] if job else [])
    return _reply(service, checked, await _list(checked, job, found[0] if found else None))


async def answer_requests(service: Service, requests: list[RecommendRequest]) -> list[RecommendReply | Problem]:
    """Answer several requests; the reply to one that cannot be answered is its problem.

    Raises:
        ProblemError: too many lists wait already, or the deadline passed.
    """
    outcomes: list[CheckedRequest | Problem] = []
    for request in requests:
        try:
            outcomes.append(check_request(service, request))
        except ProblemError as error:
            outcomes.append(error.problem)
    jobs = {
        row: _job(service, checked)
        for row, checked in enumerate(outcomes)
        if isinstance(checked, CheckedRequest) and checked.is_decoded
    }
    found = dict(zip(jobs, await service.line.decode(list(jobs.values())), strict=True))
    return [
        _reply(service, checked, await _list(checked, jobs.get(row), found.get(row)))
        if isinstance(checked, CheckedRequest)
        else checked
        for row, checked in enumerate(outcomes)
    ]


def _job(service: Service, checked: CheckedRequest) -> Job:
    run, request = checked.run, checked.request
    prompt = run.prompt(checked.places, checked.interests)
    ranking = {"history": checked.places, "k": request.k, "explain": request.explain}
    ranking |= {"steer": [wish for wish in request.steer if wish.weight]}
    ranking |= {"boosts": request.boosts, "diversity": request.diversity, "earlier": checked.earlier}
    return service.line.job(run, prompt, checked.beam_width, checked.allowed, **ranking)


async def _list(checked: CheckedRequest, job: Job | None, found: Recommendation | None) -> MadeList:
    """Return the ranker's list, else the policy's, else the most popular items."""
    if job is not None and found is not None:
        return _decoded(checked, job, found)
    if checked.request.boosts or checked.request.diversity:  # these look at all items
        return await asyncio.to_thread(_popular, checked)
    return _popular(checked)


def _decoded(checked: CheckedRequest, job: Job, found: Recommendation) -> MadeList:
    k = checked.request.k
    if job.made is None:
        return MadeList("policy", found.places[:k], list[float | None](found.scores), proven=found.is_proven(k))
    scores = list[float | None](job.made.scores)
    if checked.run.ranker is None:
        return MadeList("policy", job.made.places, scores, contributions=job.made.contributions)
    return MadeList("ranker", job.made.places, scores, job.made.sources, job.made.contributions)


def _popular(checked: CheckedRequest) -> MadeList:
    """Return the most popular of the allowed items that no page went through."""
    run, request, allowed = checked.run, checked.request, checked.allowed
    rest = _popular_from(run, checked.page.passed) if checked.page else run.popular
    listed = rest if allowed is None else rest[allowed[rest]]
    reordering = None
    if not checked.is_behind:
        reordering = reordering_of(run, request.boosts, request.diversity, allowed, np.array(checked.earlier, np.int64))
    if reordering is None:
        return MadeList("popularity", listed[: request.k], [None] * len(listed[: request.k]))
    made = reorder_popular(run, listed, reordering, request.k, explain=request.explain)
    return MadeList("popularity", made.places, [None] * len(made.places), contributions=made.contributions)


def _popular_from(run: ServedRun, place: int) -> Int[np.ndarray, " M"]:
    """Return the items from a place in the order by popularity of all items, of which some may not be listed."""
    return run.popular[np.searchsorted(run.facts.popularity[run.popular], place) :]


def _reply(service: Service, checked: CheckedRequest, made: MadeList) -> RecommendReply:
    run, explain = checked.run, checked.request.explain
    reasons = run.explain(checked.places, made.places, checked.interests) if explain else [[]] * len(made.places)
    service.metrics.count_list(checked.model, made.source, bool(made.proven))
    items = list_items(run, made.places, made.scores, reasons)
    for name, told in (("sources", made.sources), ("contributions", made.contributions)):
        if told is not None:
            items = [item.model_copy(update={name: each}) for item, each in zip(items, told, strict=True)]
    return RecommendReply(
        items=items,
        source=made.source,
        model=checked.model,
        ignored_items=checked.ignored,
        proven=made.proven,
        cursor=_next_cursor(checked, made.places, [item.item_id for item in items]) if checked.page else None,
    )


def _next_cursor(checked: CheckedRequest, places: Int[np.ndarray, " M"], item_ids: list[str]) -> str | None:
    """Return the cursor behind some listed items; None if no allowed item is left."""
    run, page = checked.run, checked.page
    allowed = np.ones(run.trie.num_items, bool) if checked.allowed is None else checked.allowed
    assert page is not None
    if not checked.is_behind:
        return page.after(item_ids).write() if allowed.sum() > len(places) else None
    passed = int(run.facts.popularity[places].max(initial=page.passed - 1)) + 1
    if not allowed[_popular_from(run, passed)].any():
        return None
    return page.model_copy(update={"passed": passed, "num_items": run.trie.num_items}).write()


def check_request(service: Service, request: RecommendRequest) -> CheckedRequest:
    """Check a request and resolve its items and filters in its version.

    Raises:
        ProblemError: it cannot be answered.
    """
    largest_beam = service.arguments.beam_width
    model, run = service.version(request.model)
    beam_width = request.beam_width or largest_beam
    if beam_width > largest_beam:
        raise beam_too_wide(beam_width, largest_beam)
    if request.k > min(beam_width, run.trie.num_items):
        raise k_too_large(request.k, beam_width, run.trie.num_items)
    _check_wishes(run, request)
    page = None if request.cursor is None else read_page(run, request.cursor)
    if request.history and request.user_id is not None:
        raise two_histories()
    named = [*(request.history or []), *(request.seeds or [])]
    if not named and request.user_id is None:
        raise empty_history()
    found = run.facts.ids.find(named).tolist()
    ignored = list(dict.fromkeys(item for item, place in zip(named, found, strict=True) if place < 0))
    if ignored and request.unknown == "refuse":
        raise unknown_items(ignored)
    places = [place for place in found if place >= 0]
    if request.user_id is not None:
        places = (run.users.find(request.user_id) or []) + places
    interests = run.shown_interests(request.user_id)
    earlier = [place for place in run.facts.ids.find(page.earlier).tolist() if place >= 0] if page else []
    allowed = allowed_items(run, request.allow, request.deny, [*places, *earlier] if request.exclude_history else earlier)
    has_items = bool(len(run.popular)) if allowed is run.listed else bool(allowed is None or allowed.any())
    if not has_items and not earlier:
        raise no_items_left(run.trie.num_items)
    return CheckedRequest(
        model=model,
        run=run,
        request=request,
        places=places,
        ignored=ignored,
        beam_width=beam_width,
        allowed=allowed,
        interests=interests,
        page=page,
        earlier=earlier,
        is_behind=page is not None and len(page.earlier) >= service.arguments.max_paged,
        has_items=has_items,
    )


def _check_wishes(run: ServedRun, request: RecommendRequest) -> None:
    if request.diversity and run.item_index is None:
        raise no_index("diversity", "diversity")
    _check_currency(run, [boost.where for boost in request.boosts])
    if request.steer and run.ranker is None:
        raise cannot_steer()
    for wish in request.steer:
        if wish.interest is not None and run.ranker and find_interest(run.ranker.ranker.vocabulary, wish.interest) < 0:
            raise unknown_interest(wish.interest)


def _check_currency(run: ServedRun, conditions: Sequence[ItemFilter | None]) -> None:
    priced = any(wanted is not None and wanted.lacks_currency() for wanted in conditions)
    if priced and len(run.facts.currencies) > 1:
        raise currency_needed(run.facts.currencies)


def allowed_items(
    run: ServedRun, allow: ItemFilter | None, deny: ItemFilter | None, left_out: Sequence[int]
) -> Bool[np.ndarray, " N"] | None:
    """Return the available items that filters allow, without some places; None if all items are.

    Raises:
        ProblemError: a price has no currency in a catalogue of several.
    """
    if allow is None and deny is None and not len(left_out):
        return run.listed
    _check_currency(run, [allow, deny])
    allowed = np.ones(run.trie.num_items, bool) if allow is None else run.matching(allow)
    for condition in deny.conditions() if deny else ():
        allowed &= ~run.matching(condition)
    allowed[list(left_out)] = False
    if run.listed is not None:
        allowed &= run.listed
    return allowed


def image_path(item_id: str, image_uri: str | None) -> str | None:
    """Return the path of an item's image on this server."""
    return f"/v1/items/{quote(item_id, safe='')}/image" if image_uri else None


def list_items(
    run: ServedRun, places: Int[np.ndarray, " M"], scores: list[float | None], reasons: list[list[str]]
) -> list[RecommendedItem]:
    """Return the facts of listed items."""
    rows = run.facts.table.select(["item_id", "title", "price", "currency", "image_uri"]).take(places_array(places)).to_pylist()
    codes = run.trie.codes[np.asarray(places, np.int64)].tolist()
    return [
        RecommendedItem(
            item_id=row["item_id"],
            score=score,
            title=row["title"],
            reasons=why,
            sid=[code for code in sid if code >= 0],
            price=row["price"],
            currency=row["currency"],
            image=image_path(row["item_id"], row["image_uri"]),
        )
        for row, sid, score, why in zip(rows, codes, scores, reasons, strict=False)
    ]
