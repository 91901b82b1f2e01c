"""The HTTP contract of similar items."""

from typing import Literal

from pydantic import Field

from serve.contract.schemas import Contract, ItemFilter, ItemId, RecommendedItem, VersionName

MAX_SIMILAR = 300
SimilarSource = Literal["text", "image", "interests", "transitions", "next", "cooccurrence"]


class SimilarRequest(Contract):
    """Ask for the neighbours of an item."""

    item_id: ItemId
    k: int = Field(10, ge=1, le=MAX_SIMILAR)
    """Length of the list; shorter where the sources and filters leave fewer."""
    sources: list[SimilarSource] | None = Field(None, min_length=1, max_length=6)
    """Only these sources: nearest texts, images or interests, what follows soon or directly, what occurs together; all of the
    version's if not given."""
    allow: ItemFilter | None = None
    """Only items that meet all of these conditions may be listed."""
    deny: ItemFilter | None = None
    """Items that meet any of these conditions may not come out; a price range with its currency is one condition."""
    explain: bool = True
    """Add the reasons."""
    model: VersionName | None = None
    """Version to ask, one of `GET /v1/models`; the default version if not given."""


class SimilarItem(RecommendedItem):
    """One neighbour.

    Its `score` is the sum over `sources` of 1 / (60 + its rank in the source's list); `reasons` are its trusted interests that
    the other item has too.
    """

    weights: dict[str, float]
    """Weight by source: cosine of texts, images or interests, or discounted counts of what follows or occurs together."""


class SimilarReply(Contract):
    """The neighbours, the most similar first."""

    item_id: str
    items: list[SimilarItem]
    sources: list[str]
    """The sources that were asked."""
    model: str
    """Version that answered."""
    recommendation_id: str
    """Id of this list; send it with events that follow from it."""
