"""The list of a checked request: the ranker's, else the policy's, else the most popular items; and the facts of its items."""

import asyncio
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from jaxtyping import Int

from digr.policy.decoding.search import Recommendation
from digr.serving.facts import num_marked, unpack
from serve.contract.schemas import RecommendedItem, Source
from serve.items.catalogue import ServedRun
from serve.lists.checking import CheckedRequest
from serve.lists.decoding import Job
from serve.lists.reordering import reorder_popular, reordering_of


class MadeList(NamedTuple):
    """A list and who made it."""

    source: Source
    places: Int[np.ndarray, " M"]
    scores: list[float | None]
    sources: list[list[str]] | None = None
    contributions: list[dict[str, float]] | None = None
    proven: bool | None = None
    is_last: bool = False
    """Of a page by popularity behind `max_paged` items: whether no allowed item is left."""


async def make_list(checked: CheckedRequest, job: Job | None, found: Recommendation | None) -> MadeList:
    """Return the ranker's list, else the policy's, else the most popular items."""
    if job is not None and found is not None:
        return _decoded(checked, job, found)
    request = checked.request
    if request.boosts or request.diversity or checked.page or checked.allowed is not None:  # these look at all items
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
    listed = rest if allowed is None else rest[unpack(allowed, run.trie.num_items)[rest]]
    reordering = None
    if not checked.is_behind:
        reordering = reordering_of(run, request.boosts, request.diversity, allowed, np.array(checked.earlier, np.int64))
    if reordering is None:
        shown = listed[: request.k]
        return MadeList("popularity", shown, [None] * len(shown), is_last=checked.is_behind and len(listed) == len(shown))
    made = reorder_popular(run, listed, reordering, request.k, explain=request.explain)
    return MadeList("popularity", made.places, [None] * len(made.places), contributions=made.contributions)


def _popular_from(run: ServedRun, place: int) -> Int[np.ndarray, " M"]:
    """Return the items from a place in the order by popularity of all items, of which some may not be listed."""
    return run.popular[np.searchsorted(run.facts.popularity[run.popular], place) :]


def next_cursor(checked: CheckedRequest, made: MadeList, item_ids: list[str]) -> str | None:
    """Return the cursor behind a list; None if no allowed item is left."""
    run, page = checked.run, checked.page
    assert page is not None
    if not checked.is_behind:
        allowed = run.trie.num_items if checked.allowed is None else num_marked(checked.allowed)
        return page.after(item_ids).write() if allowed > len(made.places) else None
    if made.is_last:
        return None
    passed = int(run.facts.popularity[made.places].max(initial=page.passed - 1)) + 1
    return page.model_copy(update={"passed": passed, "num_items": run.trie.num_items}).write()


def image_path(item_id: str, image_uri: str | None) -> str | None:
    """Return the path of an item's image on this server."""
    return f"/v1/items/{quote(item_id, safe='')}/image" if image_uri else None


def list_items(
    run: ServedRun, places: Int[np.ndarray, " M"], scores: list[float | None], reasons: list[list[str]]
) -> list[RecommendedItem]:
    """Return the facts of listed items."""
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
