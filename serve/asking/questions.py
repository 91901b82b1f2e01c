"""What can be asked of an endpoint: each function builds a request without sending it.

`serve.client` sends them, in two ways: waiting for the answer, or awaiting it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

from serve.contract.event_schemas import Event, EventsReply
from serve.contract.item_schemas import AddedItem, BulkResult, FoundItems, Item, ItemChange, NewItem
from serve.contract.schemas import (
    ChangeDefault,
    Contract,
    ItemBoost,
    ItemFilter,
    RecommendBatch,
    RecommendBatchReply,
    RecommendReply,
    RecommendRequest,
    Steer,
    Versions,
)
from serve.contract.similar_schemas import SimilarReply, SimilarRequest, SimilarSource

Reply = TypeVar("Reply", bound=Contract)


@dataclass(frozen=True, slots=True)
class Question(Generic[Reply]):
    """One request, and the form of its answer."""

    form: type[Reply]
    method: str
    path: str
    body: Mapping[str, Any] | None = None
    query: Mapping[str, Any] = field(default_factory=dict)
    """Parameters; those that are None are not sent."""
    lines: bytes | None = None
    """JSON lines as the body."""
    answer: Literal["json", "lines", "nothing"] = "json"
    """What the body of the answer is: one object, objects in lines, which are the `lines` of the form, or nothing."""

    def arguments(self, url: str) -> dict[str, Any]:
        """Return it as arguments of httpx, for the endpoint at an address."""
        params = {name: value for name, value in self.query.items() if value is not None}
        sent = {"method": self.method, "url": url + self.path, "json": self.body, "params": params}
        return sent if self.lines is None else sent | {"content": self.lines, "headers": {"Content-Type": "application/x-ndjson"}}


class BulkResults(Contract):
    """What became of the lines of a bulk."""

    lines: list[BulkResult]


class Nothing(Contract):
    """An answer without a body."""


class ListOptions(TypedDict, total=False):
    """What a list may be asked for beside its history; see `RecommendRequest`."""

    user_id: str | None
    seeds: Sequence[str] | None
    k: int
    beam_width: int | None
    allow: ItemFilter | None
    deny: ItemFilter | None
    steer: Sequence[Steer]
    boosts: Sequence[ItemBoost]
    diversity: float
    exclude_history: bool
    explain: bool
    unknown: Literal["ignore", "refuse"]
    model: str | None


class SimilarOptions(TypedDict, total=False):
    """What a list of similar items may be asked for; see `SimilarRequest`."""

    k: int
    sources: Sequence[SimilarSource] | None
    allow: ItemFilter | None
    deny: ItemFilter | None
    explain: bool
    model: str | None


def list_request(history: Sequence[str] | None, options: Mapping[str, Any]) -> RecommendRequest:
    """Build the body of a list.

    Raises:
        ValueError: the contract does not allow it.
    """
    return RecommendRequest(history=history, **options)


def ask_list(request: RecommendRequest) -> Question[RecommendReply]:
    """Ask for a list."""
    return Question(RecommendReply, "POST", "/v1/recommend", _body(request))


def ask_lists(requests: Sequence[RecommendRequest]) -> Question[RecommendBatchReply]:
    """Ask for several lists."""
    return Question(RecommendBatchReply, "POST", "/v1/recommend/batch", _body(RecommendBatch(requests=list(requests))))


def similar_request(item_id: str, options: Mapping[str, Any]) -> SimilarRequest:
    """Build the body of a list of similar items.

    Raises:
        ValueError: the contract does not allow it.
    """
    return SimilarRequest(item_id=item_id, **options)


def ask_similar(request: SimilarRequest) -> Question[SimilarReply]:
    """Ask for the neighbours of an item."""
    return Question(SimilarReply, "POST", "/v1/similar", _body(request))


def ask_items(query: str, limit: int, model: str | None) -> Question[FoundItems]:
    """Ask for items by words, or for the most popular ones."""
    return Question(FoundItems, "GET", "/v1/items", query={"query": query, "limit": limit, "model": model})


def ask_item(item_id: str, model: str | None) -> Question[Item]:
    """Ask for the facts of an item."""
    return Question(Item, "GET", _path_of(item_id), query={"model": model})


def add_item(item: NewItem) -> Question[AddedItem]:
    """Add an item."""
    return Question(AddedItem, "POST", "/v1/items", _body(item))


def change_item(item_id: str, change: ItemChange) -> Question[Item]:
    """Change facts of an item."""
    return Question(Item, "PATCH", _path_of(item_id), _body(change))


def delete_item(item_id: str) -> Question[Nothing]:
    """Take an item out of all lists."""
    return Question(Nothing, "DELETE", _path_of(item_id), answer="nothing")


def change_items(items: Iterable[NewItem | Mapping[str, Any]]) -> Question[BulkResults]:
    """Add, change or delete many items."""
    lines = [json.dumps(_body(item) if isinstance(item, NewItem) else dict(item)) for item in items]
    return send_lines("".join(f"{line}\n" for line in lines).encode())


def send_lines(content: bytes) -> Question[BulkResults]:
    """Do as `change_items` with lines that are JSON already."""
    return Question(BulkResults, "POST", "/v1/items/bulk", lines=content, answer="lines")


def ask_models() -> Question[Versions]:
    """Ask for the loaded versions."""
    return Question(Versions, "GET", "/v1/models")


def change_default(change: ChangeDefault) -> Question[Versions]:
    """Change the default version."""
    return Question(Versions, "POST", "/v1/models", _body(change))


def _path_of(item_id: str) -> str:
    return f"/v1/items/{quote(item_id, safe='')}"


def _body(request: Contract) -> dict[str, Any]:
    return request.model_dump(mode="json", exclude_unset=True)


def send_events(events: Iterable[Event]) -> Question[EventsReply]:
    """Tell what users did."""
    lines = "".join(f"{event.model_dump_json(exclude_unset=True)}\n" for event in events)
    return Question(EventsReply, "POST", "/v1/events", lines=lines.encode())
