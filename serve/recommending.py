"""From a request to its list: history, filters, beam search or popularity, reasons."""

from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from jaxtyping import Bool, Int

from digr.policy.decoding.search import Recommendation
from serve.catalogue import ServedRun, places_array
from serve.decoding import Job
from serve.problems import ProblemError, beam_too_wide, empty_history, k_too_large, no_items_left, two_histories, unknown_items
from serve.schemas import Problem, RecommendedItem, RecommendReply, RecommendRequest, Source
from serve.service import Service


class Asked(NamedTuple):
    """A checked request."""

    model: str
    run: ServedRun
    request: RecommendRequest
    places: list[int]
    """Known items of the history, oldest first."""
    ignored: list[str]
    beam_width: int
    allowed: Bool[np.ndarray, " N"] | None


async def answer(service: Service, request: RecommendRequest) -> RecommendReply:
    """Answer one request.

    Raises:
        ProblemError: it cannot be answered.
    """
    asked = check(service, request)
    ranked = await service.line.decode([_job(service, asked)] if asked.places else [])
    return _reply(service, asked, ranked[0] if ranked else None)


async def answer_all(service: Service, requests: list[RecommendRequest]) -> list[RecommendReply | Problem]:
    """Answer several requests; one that cannot be answered has its problem in its place.

    Raises:
        ProblemError: too many wait already, or the deadline passed.
    """
    checked: list[Asked | Problem] = []
    for request in requests:
        try:
            checked.append(check(service, request))
        except ProblemError as error:
            checked.append(error.problem)
    jobs = {row: _job(service, asked) for row, asked in enumerate(checked) if isinstance(asked, Asked) and asked.places}
    ranked = dict(zip(jobs, await service.line.decode(list(jobs.values())), strict=True))
    return [_reply(service, asked, ranked.get(row)) if isinstance(asked, Asked) else asked for row, asked in enumerate(checked)]


def _job(service: Service, asked: Asked) -> Job:
    return service.line.job(asked.run, asked.run.prompt(asked.places), asked.beam_width, asked.allowed)


def _reply(service: Service, asked: Asked, ranked: Recommendation | None) -> RecommendReply:
    """Write the list of the policy, or without one that of the counts."""
    run, k = asked.run, asked.request.k
    if ranked is not None:
        places, scores = ranked.places[:k], list[float | None](ranked.scores)
    else:
        listed = run.popular if asked.allowed is None else run.popular[asked.allowed[run.popular]]
        places, scores = listed[:k], [None] * k
    reasons = run.explain(asked.places, places) if asked.request.explain else [[]] * len(places)
    source: Source = "popularity" if ranked is None else "policy"
    service.metrics.count_list(asked.model, source)
    items = _items(run, places, scores, reasons)
    return RecommendReply(items=items, source=source, model=asked.model, ignored_items=asked.ignored)


def check(service: Service, request: RecommendRequest) -> Asked:
    """Find the request's items and filters in its version.

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
    return Asked(model, run, request, places, ignored, beam_width, _allowed(run, request, places))


def _allowed(run: ServedRun, request: RecommendRequest, places: list[int]) -> Bool[np.ndarray, " N"] | None:
    if request.allow is None and request.deny is None and not request.exclude_history:
        return None
    allowed = np.ones(run.trie.num_items, bool) if request.allow is None else run.matching(request.allow)
    for condition in request.deny.conditions() if request.deny else ():
        allowed &= ~run.matching(condition)
    if request.exclude_history:
        allowed[places] = False
    if not allowed.any():
        raise no_items_left(run.trie.num_items)
    return allowed


def image_path(item_id: str, image_uri: str | None) -> str | None:
    """Return the path of an item's image on this server."""
    return f"/v1/items/{quote(item_id, safe='')}/image" if image_uri else None


def _items(
    run: ServedRun, places: Int[np.ndarray, " M"], scores: list[float | None], reasons: list[list[str]]
) -> list[RecommendedItem]:
    rows = run.facts.table.select(["item_id", "title", "price_usd", "image_uri"]).take(places_array(places)).to_pylist()
    codes = run.trie.codes[np.asarray(places, np.int64)].tolist()
    return [
        RecommendedItem(
            item_id=row["item_id"],
            score=score,
            title=row["title"],
            reasons=why,
            sid=[code for code in sid if code >= 0],
            price_usd=row["price_usd"],
            image=image_path(row["item_id"], row["image_uri"]),
        )
        for row, sid, score, why in zip(rows, codes, scores, reasons, strict=False)
    ]
