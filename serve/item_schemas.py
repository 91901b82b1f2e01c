"""The HTTP contract of the catalogue: items, their search, the tree of semantic IDs, and new items."""

from typing import Annotated

from pydantic import Field, StringConstraints

from serve.schemas import Category, Contract, Currency, ItemId, Price

MAX_SEARCH, MAX_CHILDREN, MAX_NEW_INTERESTS = 50, 4096, 64

Words = Annotated[str, StringConstraints(min_length=1, max_length=256, strip_whitespace=True)]
Text = Annotated[str, StringConstraints(max_length=20_000)]


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
    interests: list[Words] = Field([], max_length=MAX_NEW_INTERESTS)
    """Trusted interests, strongest first; they enter the item's vector as those of the run's items do."""


class AddedItem(Contract):
    """Where the new item stands."""

    item_id: str
    sids: dict[str, list[int]]
    """Its semantic ID in each loaded version."""
    is_new: bool
    """False where the same item was added before."""
