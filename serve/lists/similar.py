"""Similar items: the neighbours of an item in the version's ranking index, with the interests that they share."""

import asyncio
import uuid
from collections.abc import Sequence

import numpy as np

from digr.ranking.similar import similar_items, sources_of_items
from digr.serving.facts import unpack
from serve.contract.problems import ProblemError, no_index
from serve.contract.similar_schemas import SimilarItem, SimilarReply, SimilarRequest
from serve.items.browsing import find_item
from serve.items.catalogue import ServedRun
from serve.lists.checking import allowed_items
from serve.lists.listing import list_items
from serve.live.impressions import Shown
from serve.service import Service

SIMILAR = "similar"
"""Who made the list, in the log of lists."""


async def answer_similar(service: Service, request: SimilarRequest) -> SimilarReply:
    """Answer one request for similar items, and log the list.

    Raises:
        ProblemError: it cannot be answered.
    """
    name, run = service.version(request.model)
    reply = await asyncio.to_thread(find_similar, name, run, request)
    if service.impressions is not None:
        places = run.facts.ids.find([request.item_id, *(item.item_id for item in reply.items)]).tolist()
        shown = Shown(
            run=run,
            reply=reply,
            list_source=SIMILAR,
            user_id=None,
            places=places[:1],
            listed=places[1:],
            interests=None,
            has_reasons=request.explain,
            arm=None,
            is_shadow=False,
        )
        service.impressions.add(shown)
    return reply


def find_similar(name: str, run: ServedRun, request: SimilarRequest) -> SimilarReply:
    """List the neighbours of an item.

    Raises:
        ProblemError: there is no such item, the index does not know it, or the version has no such source or no index.
    """
    place = find_item(run, request.item_id)
    if run.item_index is None:
        raise no_index("model", "similar items")
    row, known = int(run.item_index.row_of[place]), list(sources_of_items(run.item_index.view))
    if row < 0:
        raise not_indexed(request.item_id)
    if missing := [source for source in request.sources or [] if source not in known]:
        raise missing_source(missing, known)
    sources = list(dict.fromkeys(request.sources or known))
    words = allowed_items(run, request.allow, request.deny, ())
    allowed = run.item_index.served(None if words is None else unpack(words, run.trie.num_items))
    found = similar_items(run.item_index.view, row, request.k, sources, allowed)
    places = run.item_index.place_of[found.item]
    reasons = run.explain([place], places) if request.explain else [[]] * len(places)
    weights = [
        {source: round(float(values[at]), 6) for source, values in found.weights.items() if not np.isnan(values[at])}
        for at in range(len(places))
    ]
    listed = zip(list_items(run, places, found.score.tolist(), reasons), weights, strict=True)
    items = [SimilarItem(**item.model_dump() | {"weights": each, "sources": list(each)}) for item, each in listed]
    return SimilarReply(item_id=request.item_id, items=items, sources=sources, model=name, recommendation_id=uuid.uuid4().hex)


def not_indexed(item_id: str) -> ProblemError:
    """Say that an item came after the index."""
    detail = f"item {item_id!r} was added after the run, whose ranking index does not know it; build the run again with it"
    return ProblemError("not-indexed", 422, "No neighbours yet", detail, fields=["item_id"])


def missing_source(missing: Sequence[str], known: Sequence[str]) -> ProblemError:
    """Name the sources that the version has."""
    detail = f"this version has no source {', '.join(missing)}; it has {', '.join(known)}"
    return ProblemError("no-such-source", 422, "No such source", detail, fields=["sources"])
