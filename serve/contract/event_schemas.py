"""The HTTP contract of events: what users did, and what became of it."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from serve.contract.schemas import Contract, ItemId, UserId

MAX_EVENTS = 5000
EventType = Literal["view", "cart", "purchase", "rating"]
EventId = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
RecommendationId = Annotated[str, StringConstraints(max_length=32, pattern=r"^[0-9a-f]{32}$")]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Event(Contract):
    """One thing that a user did with an item."""

    event_id: EventId
    """The sender's id of the event: sending it again changes nothing."""
    type: EventType
    user_id: UserId
    item_id: ItemId
    """Id of the item; an event of an item that is not in the catalogue is kept and does not change lists."""
    time: AwareDatetime | None = None
    """When it happened, with a time zone. The server's time counts if there is none, or one in the future or over 30 days ago."""
    rating: float | None = Field(None, ge=-1e6, le=1e6, allow_inf_nan=False)
    """The rating, of an event of type `rating` only."""
    recommendation_id: RecommendationId | None = None
    """The list that the user came from, as its reply named it."""

    @model_validator(mode="after")
    def _rated_if_rating(self) -> "Event":
        if (self.type == "rating") != (self.rating is not None):
            raise ValueError("an event of type rating has a rating, and no other event has one")
        return self

    def milliseconds(self) -> int | None:
        """Return its own time in milliseconds since 1970."""
        return None if self.time is None else (self.time - _EPOCH) // timedelta(milliseconds=1)


class EventError(Contract):
    """One event of several that was not taken."""

    line: int
    """Place in the list, or line of the body, counted from 1."""
    detail: str
    """What was found and what was expected."""


class EventsReply(Contract):
    """What became of the events. Those accepted are durable."""

    accepted: int
    duplicates: int
    """Events whose id came before."""
    retimed: int
    """Accepted events whose own time does not count, see `time`."""
    errors: list[EventError] = Field(default_factory=list)
    """Events that break the contract and were not taken; the others were."""
