"""The HTTP contract of the catalogue: items, their search, the tree of semantic IDs, and new items."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from serve.contract.schemas import Category, Contract, Currency, ItemId, Price, Problem

MAX_SEARCH, MAX_CHILDREN, MAX_NEW_INTERESTS, MAX_BULK = 50, 4096, 64, 1000

Words = Annotated[str, StringConstraints(min_length=1, max_length=256, strip_whitespace=True)]
Text = Annotated[str, StringConstraints(max_length=20_000)]
ImageUri = Annotated[str, StringConstraints(min_length=1, max_length=200_000, pattern=r"^[^\x00-\x20\x7f]+$")]


class Item(Contract):
    """All facts of an item."""

    item_id: str
    title: str
    description: str | None = None
    brand: str | None = None
    categories: list[str] = Field(default_factory=list)
    price: float | None = None
    currency: str | None = None
    """ISO 4217 code of the price's currency; null where nobody knows."""
    available: bool = True
    """Whether it may be listed."""
    image: str | None = None
    """Path of the item's image on this server."""
    sid: list[int]
    """Semantic ID, one code per level."""
    sid_text: str
    """The semantic ID as text of the policy, such as `<a_1><b_2>`."""
    interests: list[str]
    """Trusted interests, strongest first."""


class FoundItem(Contract):
    """An item of a search."""

    item_id: str
    title: str
    image: str | None = None
    """Path of the item's image on this server."""
    interest: str | None = None
    """Name of the canonical interest by which it was found; null if it was found by its title."""


class FoundItems(Contract):
    """Items found by the words of their titles, better ones first, and behind them those found by canonical interests."""

    items: list[FoundItem]


class SidChild(Contract):
    """One code below a prefix."""

    code: int
    prefix: str
    """The whole prefix including this code, for the next request."""
    num_items: int
    item_id: str | None = None
    """The item, where the prefix is a whole semantic ID of one item."""
    samples: list[FoundItem]
    """Some of the items, the most popular first."""
    interests: list[str]
    """Names of the canonical interests that most of the items have, commonest first; where the run has none, of interests."""


class SidLevel(Contract):
    """The children of a prefix of semantic IDs."""

    prefix: str
    level: int
    """Codes in the prefix; 0 is the root."""
    num_items: int
    children: list[SidChild]
    """By code; none below a whole semantic ID."""


class NewItem(Contract):
    """An item to add to the catalogue."""

    item_id: ItemId
    title: Words
    description: Text | None = None
    brand: Words | None = None
    categories: list[Category] = Field([], max_length=32)
    price: Price | None = None
    currency: Currency | None = None
    """ISO 4217 code of the price's currency."""
    image_uri: ImageUri | None = None
    """Address of its image, https or `data:`; it is shown, and does not enter the item's vector."""
    available: bool = True
    """Whether it may be listed."""
    interests: list[Words] = Field([], max_length=MAX_NEW_INTERESTS)
    """Trusted interests, strongest first; they enter the item's vector as those of the run's items do."""


class ItemChange(Contract):
    """Facts of an item that change; those that are not given stay, and null takes one away."""

    title: Words | None = None
    """Cannot be null."""
    description: Text | None = None
    brand: Words | None = None
    categories: list[Category] = Field([], max_length=32)
    price: Price | None = None
    currency: Currency | None = None
    """ISO 4217 code of the price's currency."""
    image_uri: ImageUri | None = None
    """Address of its image, https or `data:`."""
    available: bool = True
    """Whether the item may be listed; false leaves it in histories and in the catalogue."""

    @field_validator("title")
    @classmethod
    def _title_is_given(cls, title: str | None) -> str:
        if title is None:
            raise ValueError("an item has a title; give one, or leave it out to keep the old one")
        return title


class AddedItem(Contract):
    """Where the new item stands."""

    item_id: str
    sids: dict[str, list[int]]
    """Its semantic ID in each loaded version."""
    is_new: bool
    """False where the same item was added before."""


class BulkResult(Contract):
    """What became of one line of a bulk."""

    line: int
    """Number of the line, from 1; empty lines count."""
    item_id: str | None = None
    status: Literal["added", "changed", "unchanged", "failed"]
    problem: Problem | None = None
    """Why it failed."""
