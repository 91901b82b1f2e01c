"""Check a request for a list, and resolve its items, filters and page in the version that will answer."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from digr.ranking.steering import find_interest
from digr.serving.facts import pack, pack_places
from serve.contract.problems import (
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
from serve.contract.schemas import ExperimentArm, ItemFilter, RecommendRequest
from serve.items.catalogue import ServedRun
from serve.lists.paging import Page, read_page
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
    """Items that may be listed, as bits of words; None for all."""
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
    arm: ExperimentArm | None
    shadow_of: str | None = None
    """Id of the list that was shown, if this one is for the shadow."""

    @property
    def is_decoded(self) -> bool:
        """Whether the policy is asked; else the list is by popularity."""
        return bool(self.places) and self.has_items and not self.is_behind


def check_request(service: Service, request: RecommendRequest) -> CheckedRequest:
    """Check a request and resolve its items and filters in its version.

    Raises:
        ProblemError: it cannot be answered.
    """
    largest_beam = service.arguments.beam_width
    arm = service.arm_of(request.user_id) if request.model is None else None
    model, run = service.version(arm.arm if arm else request.model)
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
        places = (run.users.find(request.user_id) or []) + service.recent_places(run, request.user_id) + places
    interests = run.shown_interests(request.user_id)
    earlier = [place for place in run.facts.ids.find(page.earlier).tolist() if place >= 0] if page else []
    allowed = allowed_items(run, request.allow, request.deny, [*places, *earlier] if request.exclude_history else earlier)
    has_items = bool(len(run.popular)) if allowed is run.listed_words else bool(allowed is None or allowed.any())
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
        arm=arm,
    )


def _check_wishes(run: ServedRun, request: RecommendRequest) -> None:
    if request.diversity and run.item_index is None:
        raise no_index("diversity", "diversity")
    _check_currency(run, [boost.where for boost in request.boosts])
    if request.steer and run.ranker is None:
        raise cannot_steer()
    for at, wish in enumerate(request.steer):
        if wish.interest is not None and run.ranker and find_interest(run.ranker.ranker.vocabulary, wish.interest) < 0:
            raise unknown_interest(wish.interest, at)


def _check_currency(run: ServedRun, conditions: Sequence[ItemFilter | None]) -> None:
    priced = any(wanted is not None and wanted.lacks_currency() for wanted in conditions)
    if priced and len(run.facts.currencies) > 1:
        raise currency_needed(run.facts.currencies)


def allowed_items(
    run: ServedRun, allow: ItemFilter | None, deny: ItemFilter | None, left_out: Sequence[int]
) -> Int64[np.ndarray, " W"] | None:
    """Return the available items that filters allow, without some places, as bits of words; None if all items are.

    Raises:
        ProblemError: a price has no currency in a catalogue of several.
    """
    if allow is None and deny is None and not len(left_out):
        return run.listed_words
    _check_currency(run, [allow, deny])
    num = run.trie.num_items
    allowed = pack(np.ones(num, bool)) if allow is None else run.matching(allow)
    for condition in deny.conditions() if deny else ():
        allowed &= ~run.matching(condition)
    if len(left_out):
        allowed &= ~pack_places(np.asarray(left_out, np.int64), num)
    if run.listed_words is not None:
        allowed &= run.listed_words
    return allowed
