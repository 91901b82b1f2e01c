"""The HTTP contract of recommendations: what may be asked and what comes back."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MAX_HISTORY, MAX_K, MAX_BATCH, MAX_FILTER, MAX_BOOSTS = 1000, 1000, 64, 1000, 8
MAX_CURSOR = 600_000
"""Characters of a cursor; one has a few thousand unless ids are very long."""

_PRINTABLE = r"^[^\x00-\x1f\x7f]+$"
ItemId = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=_PRINTABLE)]
UserId = ItemId
Category = ItemId
Brand = ItemId
VersionName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
Price = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Currency = Annotated[str, StringConstraints(max_length=3, pattern=r"^[A-Z]{3}$")]
"""ISO 4217 code, such as EUR."""

Source = Literal["ranker", "policy", "popularity"]


class Contract(BaseModel):
    """Refuse unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ItemFilter(Contract):
    """Items by their ids, categories, brands and prices; one without any condition has no effect."""

    item_ids: list[ItemId] | None = Field(None, max_length=MAX_FILTER)
    """Only these items; unknown ids are ignored."""
    categories: list[Category] | None = Field(None, max_length=MAX_FILTER)
    """Items with at least one of these categories."""
    brands: list[Brand] | None = Field(None, max_length=MAX_FILTER)
    """Items of one of these brands, written as the catalogue writes them."""
    min_price: Price | None = None
    """Items of at least this price; an item without a price has none."""
    max_price: Price | None = None
    """Items of at most this price; an item without a price has none."""
    currency: Currency | None = None
    """Items priced in this currency; needed beside a price where the version has several (`currencies` of `GET /v1/models`)."""

    def lacks_currency(self) -> bool:
        """Whether it compares prices without saying in which currency."""
        return self.currency is None and (self.min_price is not None or self.max_price is not None)

    def conditions(self) -> "list[ItemFilter]":
        """Return a filter for each condition; a price range with its currency is one."""
        parts = [
            ItemFilter(item_ids=self.item_ids),
            ItemFilter(categories=self.categories),
            ItemFilter(brands=self.brands),
            ItemFilter(min_price=self.min_price, max_price=self.max_price, currency=self.currency),
        ]
        return [part for part in parts if part != ItemFilter()]


class Steer(Contract):
    """A wish for more of something, or less: either `interest` or `text`."""

    interest: str | None = Field(None, min_length=1, max_length=200)
    """Name of a canonical interest of the run, ignoring case."""
    text: str | None = Field(None, min_length=1, max_length=500)
    """Free words, which stand for the nearest canonical interests."""
    weight: float = Field(1.0, ge=-10, le=10, allow_inf_nan=False)
    """Strength of the wish; negative for less, 0 for no effect."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "Steer":
        if (self.interest is None) == (self.text is None):
            raise ValueError("a wish has either interest or text")
        return self


class ItemBoost(Contract):
    """A weight on all items that meet a condition."""

    where: ItemFilter
    """Items that meet all of these conditions, of which there is at least one."""
    weight: float = Field(ge=-10, le=10, allow_inf_nan=False)
    """Strength, in the unit of the weights of `steer`; negative to bury, 0 for no effect."""

    @model_validator(mode="after")
    def _has_a_condition(self) -> "ItemBoost":
        if not self.where.conditions():
            raise ValueError("a boost needs a condition in where: item_ids, categories, brands, min_price or max_price")
        return self


class RecommendRequest(Contract):
    """Ask what comes next after a history."""

    history: list[ItemId] | None = Field(None, max_length=MAX_HISTORY)
    """Item ids, oldest first; only the newest are used, as many as in training. Either this or `user_id`."""
    user_id: UserId | None = None
    """A user of the run, whose interactions are the history; an unknown one gets the popular items."""
    seeds: list[ItemId] | None = Field(None, max_length=MAX_HISTORY)
    """Further items, appended to the history as its newest; without a history they are the history."""
    k: int = Field(10, ge=1, le=MAX_K)
    """Length of the list, at most the beam width of the deployment; shorter if filters allow fewer items."""
    beam_width: int | None = Field(None, ge=1, le=MAX_K)
    """Beams kept, at least k and at most the deployment's, which is the default."""
    allow: ItemFilter | None = None
    """Only items that meet all of these conditions may be listed."""
    deny: ItemFilter | None = None
    """Items that meet any of these conditions may not come out; a price range with its currency is one condition."""
    steer: list[Steer] = Field([], max_length=8)
    """Wishes for more of an interest, or less; only if the version has a ranker."""
    boosts: list[ItemBoost] = Field([], max_length=MAX_BOOSTS)
    """Items of which the list shall have more, or less, by their attributes."""
    diversity: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    """How much items shall differ in their interests from those before them; 0 for no effect. Needs a ranking index."""
    cursor: str | None = Field(None, max_length=MAX_CURSOR, pattern=r"^[A-Za-z0-9_-]*$")
    """Page of a longer list: empty for the first one, then the `cursor` of the reply before."""
    exclude_history: bool = False
    """Leave out the items of the history and the seeds."""
    explain: bool = True
    """Add the reasons."""
    unknown: Literal["ignore", "refuse"] = "ignore"
    """For items of the history that are not in the catalogue: ignore and report them, or refuse the request."""
    model: VersionName | None = None
    """Version to ask, one of `GET /v1/models`; the default version if not given."""


class RecommendedItem(Contract):
    """One item of the list."""

    item_id: str
    score: float | None
    """Score of the ranker; in a list of the policy's own the item's log-probability, at most 0 without boosts; null in a list by
    popularity."""
    title: str
    reasons: list[str]
    """Trusted interests that the item shares with the history or the user, strongest first, in the item's own words: of the same
    canonical interest, or where the run has none, those that read the same."""
    sid: list[int]
    """Semantic ID, one code per level."""
    price: float | None = None
    currency: str | None = None
    """ISO 4217 code of the price's currency; null where nobody knows."""
    image: str | None = None
    """Path of the item's image on this server."""
    sources: list[str] = []
    """Which sources proposed the item to the ranker."""
    contributions: dict[str, float] = {}
    """Contribution of each group of features, and of the request's wishes and boosts, to the score, up to a constant; with
    `explain`."""


class ExperimentArm(Contract):
    """Where an experiment put the user of a request."""

    experiment: str
    arm: str
    """The version that answers this arm."""


class RecommendReply(Contract):
    """The list, best first."""

    items: list[RecommendedItem]
    source: Source
    """Who made the list: the ranker over all sources, the policy alone where the version has no ranker, or the counts of the
    training interactions where nothing of the history is known."""
    model: str
    """Version that answered."""
    ignored_items: list[str] = []
    """Ids of the history and the seeds that are not in the catalogue, each once."""
    recommendation_id: str
    """Names this list; events that follow from it may carry it."""
    experiment: ExperimentArm | None = None
    """The experiment that the user takes part in; null outside of one."""
    proven: bool | None = None
    """Whether the list is proven to hold the allowed items that are most probable to the policy; null for lists of the ranker or
    of the counts, and for those with boosts or diversity."""
    cursor: str | None = None
    """Where the next page begins, if the request had a `cursor`; null behind the last item."""


class RecommendBatch(Contract):
    """Ask for several lists at once."""

    requests: list[RecommendRequest] = Field(min_length=1, max_length=MAX_BATCH)


class Problem(Contract):
    """An error in the form of RFC 9457 (application/problem+json)."""

    type: str
    """Name of the cause, for programs."""
    title: str
    status: int
    detail: str
    """What was found, what was expected, and what to do."""
    unknown_items: list[str] | None = None
    """Ids of the request that are not in the catalogue."""
    fields: list[str] | None = None
    """Fields of the request that are wrong."""


class RecommendBatchReply(Contract):
    """One answer per request of the batch, in its order."""

    replies: list[RecommendReply | Problem]


class Health(Contract):
    """What is being served."""

    status: Literal["ok"]
    model: str
    """The default version."""
    policy: Literal["policy_grpo", "policy_sft"]
    policy_digest: str
    num_items: int


class Ready(Contract):
    """Ready for requests."""

    status: Literal["ready"]


class Version(Contract):
    """One loaded version of policy and catalogue, also readable as a model by OpenAI clients."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    """Unix time of loading, seconds."""
    owned_by: str = "digr"
    default: bool
    """Whether this is the default version."""
    policy: Literal["policy_grpo", "policy_sft"]
    policy_digest: str
    ranker: Literal["on", "off", "missing"]
    """"on" where lists are ranked over all sources and can be steered, "off" where the version's settings say so, "missing" where
    the run has no ranker."""
    num_items: int
    num_new_items: int
    """Items that were added by `POST /v1/items` since the run."""
    num_hidden_items: int = 0
    """Items that may not be listed, because they were deleted or are not available."""
    waiting: str | None = None
    """Why the version does not have all added items yet; null if it has."""
    refused_items: dict[str, str] = Field(default_factory=dict)
    """Added items, at most 100, that the version cannot recommend, and why."""
    level_sizes: list[int]
    """Codes per level of the semantic IDs."""
    currencies: list[str]
    """ISO 4217 codes of the currencies that its items' prices are in; none where nobody knows."""
    max_history: int
    """Newest items of a history that the policy sees."""
    beam_width: int
    """Largest beam width and k of a request."""


class Versions(Contract):
    """All loaded versions."""

    object: Literal["list"] = "list"
    data: list[Version]
    previous: str | None = None
    """Version that `roll_back` would make the default."""
    failed: dict[str, str] = Field(default_factory=dict)
    """Configured versions that could not be loaded, and why."""
    set_aside: dict[str, str] = Field(default_factory=dict)
    """Files of the state, at most 100, that could not be read and are left out, and why."""


class ChangeDefault(Contract):
    """Make another loaded version the default, on every replica and over restarts."""

    action: Literal["promote", "roll_back"]
    model: VersionName | None = None
    """Version to promote; not given for `roll_back`, which returns to the default before the last promotion."""
