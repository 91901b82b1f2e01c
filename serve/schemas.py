"""The HTTP contract: what may be asked and what comes back."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_HISTORY, MAX_K = 1000, 1000

ItemId = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Contract(BaseModel):
    """Refuse unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RecommendRequest(Contract):
    """Ask what comes next after a history."""

    history: list[ItemId] = Field(min_length=1, max_length=MAX_HISTORY)
    """Item ids, oldest first; the newest ones count, as many as in training."""
    k: int = Field(10, ge=1, le=MAX_K)
    """Items wanted, at most the beam width of the deployment."""


class RecommendedItem(Contract):
    """One item of the list."""

    item_id: str
    score: float
    """Log-probability of the item under the policy; at most 0."""
    title: str
    reasons: list[str]
    """Trusted interests that the item shares with the history, strongest first."""


class RecommendReply(Contract):
    """The list, best first."""

    items: list[RecommendedItem]


class Health(Contract):
    """What is being served."""

    status: Literal["ok"]
    policy: Literal["policy_grpo", "policy_sft"]
    policy_digest: str
    num_items: int


class Problem(Contract):
    """An error in the form of RFC 9457 (application/problem+json)."""

    type: str
    """`about:blank`, or a name of the cause a program can act on."""
    title: str
    status: int
    detail: str
    """What was found, what was expected, and what to do."""
    unknown_items: list[str] | None = None
    """Ids of the history that are not in the catalogue."""
    fields: list[str] | None = None
    """Fields of the request that are not as they should be."""
