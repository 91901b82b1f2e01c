"""From a request to its list: check history and filters, search or take popular items, add reasons."""

import asyncio
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from jaxtyping import Int, Int64

from digr.policy.decoding.search import Recommendation
from digr.ranking.steering import find_interest
from digr.serving.facts import pack, pack_places, unpack
from serve.catalogue import ServedRun
from serve.decoding import Job
from serve.problems import (
    ProblemError,
    beam_too_wide,
    cannot_steer,
    currency_needed,
    empty_history,
    k_too_large,
    no_items_left,
    two_histories,
    unknown_interest,
    unknown_items,
)
from serve.schemas import Problem, RecommendedItem, RecommendReply, RecommendRequest, Source
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
    allowed: Int64[np.ndarray, " W"] | None
    interests: str | None
    """Interests of a known user, as the prompt shows them."""


async def answer_request(service: Service, request: RecommendRequest) -> RecommendReply:
    """Answer one request.

    Raises:
        ProblemError: it cannot be answered.
    """
    checked = await _check_aside(service, request)
    job = _job(service, checked) if checked.places else None
    found = await service.line.decode([job] if job else [])
    return _reply(service, checked, job, found[0] if found else None)


async def answer_requests(service: Service, requests: list[RecommendRequest]) -> list[RecommendReply | Problem]:
    """Answer several requests; the reply to one that cannot be answered is its problem.

    Raises:
        ProblemError: too many lists wait already, or the deadline passed.
    """
    outcomes: list[CheckedRequest | Problem] = []
    for request in requests:
        try:
            outcomes.append(await _check_aside(service, request))
        except ProblemError as error:
            outcomes.append(error.problem)
    jobs = {
        row: _job(service, checked)
        for row, checked in enumerate(outcomes)
        if isinstance(checked, CheckedRequest) and checked.places
    }
    found = dict(zip(jobs, await service.line.decode(list(jobs.values())), strict=True))
    return [
        _reply(service, checked, jobs.get(row), found.get(row)) if isinstance(checked, CheckedRequest) else checked
        for row, checked in enumerate(outcomes)
    ]


async def _check_aside(service: Service, request: RecommendRequest) -> CheckedRequest:
    """Check a request; in another thread if it has filters, which look at every item of the catalogue."""
    if request.allow is None and request.deny is None:
        return check_request(service, request)
    return await asyncio.to_thread(check_request, service, request)


def _job(service: Service, checked: CheckedRequest) -> Job:
    run, request = checked.run, checked.request
    prompt = run.prompt(checked.places, checked.interests)
    ranking = {"history": checked.places, "k": request.k, "explain": request.explain}
    ranking |= {"steer": [wish for wish in request.steer if wish.weight]}
    return service.line.job(run, prompt, checked.beam_width, checked.allowed, **ranking)


def _reply(service: Service, checked: CheckedRequest, job: Job | None, found: Recommendation | None) -> RecommendReply:
    """Build the reply from the ranker's list, else from the policy's, else from the most popular items."""
    run, k = checked.run, checked.request.k
    ranked = job.ranked if job else None
    source: Source
    if ranked is not None:
        source, places, scores = "ranker", ranked.places, list[float | None](ranked.scores)
    elif found is not None:
        source, places, scores = "policy", found.places[:k], list[float | None](found.scores)
    else:
        listed = run.popular
        if checked.allowed is not None:
            listed = listed[unpack(checked.allowed, run.trie.num_items)[listed]]
        source, places, scores = "popularity", listed[:k], [None] * k
    reasons = run.explain(checked.places, places, checked.interests) if checked.request.explain else [[]] * len(places)
    proven = found.is_proven(k) if source == "policy" and found is not None else None
    service.metrics.count_list(checked.model, source, bool(proven))
    items = _items(run, places, scores, reasons)
    if ranked is not None:
        told = zip(items, ranked.sources, ranked.contributions, strict=True)
        items = [item.model_copy(update={"sources": names, "contributions": parts}) for item, names, parts in told]
    return RecommendReply(items=items, source=source, model=checked.model, ignored_items=checked.ignored, proven=proven)


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
    _check_steer(run, request)
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
    return CheckedRequest(model, run, request, places, ignored, beam_width, _allowed(run, request, places), interests)


def _check_steer(run: ServedRun, request: RecommendRequest) -> None:
    if request.steer and run.ranker is None:
        raise cannot_steer()
    for wish in request.steer:
        if wish.interest is not None and run.ranker and find_interest(run.ranker.ranker.vocabulary, wish.interest) < 0:
            raise unknown_interest(wish.interest)


def _allowed(run: ServedRun, request: RecommendRequest, places: list[int]) -> Int64[np.ndarray, " W"] | None:
    if request.allow is None and request.deny is None and not request.exclude_history:
        if not len(run.popular):
            raise no_items_left(run.trie.num_items)
        return run.listed_words
    priced = any(wanted is not None and wanted.lacks_currency() for wanted in (request.allow, request.deny))
    if priced and len(run.facts.currencies) > 1:
        raise currency_needed(run.facts.currencies)
    num = run.trie.num_items
    allowed = pack(np.ones(num, bool)) if request.allow is None else run.matching(request.allow)
    for condition in request.deny.conditions() if request.deny else ():
        allowed &= ~run.matching(condition)
    if request.exclude_history:
        allowed &= ~pack_places(np.asarray(places, np.int64), num)
    if run.listed_words is not None:
        allowed &= run.listed_words
    if not allowed.any():
        raise no_items_left(num)
    return allowed


def image_path(item_id: str, image_uri: str | None) -> str | None:
    """Return the path of an item's image on this server."""
    return f"/v1/items/{quote(item_id, safe='')}/image" if image_uri else None


def _items(
    run: ServedRun, places: Int[np.ndarray, " M"], scores: list[float | None], reasons: list[list[str]]
) -> list[RecommendedItem]:
    rows = run.facts.table.take(places, ["item_id", "title", "price", "currency", "image_uri"]).to_pylist()
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
