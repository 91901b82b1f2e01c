"""Ask a running endpoint from Python; `python -m serve.client` and `digr ask` do so from a shell (`serve.asking.command_line`).

from serve.client import Client

client = Client("http://127.0.0.1:8000")
for item in client.recommend(history=["item-17", "item-4"], k=5):
    print(item.title, item.score, item.reasons)

`AsyncClient` has the same methods, which are awaited. `serve.asking.questions` builds what they send,
`serve.asking.answers` reads what comes back.
"""

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from serve.asking import questions
from serve.asking.answers import (
    DEFAULT_URL,
    BusyError,
    ConflictError,
    EndpointError,
    InvalidRequestError,
    NotAllowedError,
    NotFoundError,
    ServerError,
    key_headers,
    naming_failures,
    read_reply,
    retry_seconds,
)
from serve.asking.questions import ListOptions, Question, Reply, SimilarOptions
from serve.contract.event_schemas import Event, EventsReply
from serve.contract.item_schemas import AddedItem, BulkResult, FoundItem, Item, ItemChange, NewItem
from serve.contract.schemas import ChangeDefault, Problem, RecommendedItem, RecommendReply, RecommendRequest, Versions
from serve.contract.similar_schemas import SimilarItem, SimilarReply, SimilarRequest

__all__ = [
    "DEFAULT_URL",
    "AsyncClient",
    "BusyError",
    "Client",
    "ConflictError",
    "EndpointError",
    "InvalidRequestError",
    "NotAllowedError",
    "NotFoundError",
    "ServerError",
]


class Client:
    """Speaks to one endpoint over connections that stay open; every method waits for the answer. Threads may share one.

    All methods raise an `EndpointError` for an answer that is a problem, by its status one of `InvalidRequestError`,
    `NotAllowedError`, `NotFoundError`, `ConflictError`, `BusyError` and `ServerError`; `ConnectionError` where no server listens;
    and `ValueError` for what the contract does not allow. `with` closes the connections, as the end of the program does.

    Args:
        key: API key; "" for none.
        timeout_seconds: longest wait for one answer.
        retries: how often a request is sent again that was answered by 429 or 503 with a `Retry-After`.
        max_wait_seconds: longest `Retry-After` that is waited for; where the endpoint asks for more, the error comes at once.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        key: str = "",
        timeout_seconds: float = 30.0,
        *,
        retries: int = 2,
        max_wait_seconds: float = 10.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url, self.headers = url.rstrip("/"), key_headers(key)
        self._timeout, self._retries, self._max_wait, self._sleep = timeout_seconds, retries, max_wait_seconds, sleep
        self._http = httpx.Client(headers=self.headers, timeout=timeout_seconds, follow_redirects=False)
        self._close = weakref.finalize(self, self._http.close)

    def close(self) -> None:
        """Close the connections."""
        self._close()

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the connections."""
        self.close()

    def recommend(self, history: Sequence[str] | None = None, **options: Unpack[ListOptions]) -> list[RecommendedItem]:
        """List what comes next after a history, best first; the options are those of `RecommendRequest`."""
        return self.answer(questions.list_request(history, options)).items

    def answer(self, request: RecommendRequest) -> RecommendReply:
        """Return the whole reply to a request: the list, who made it, and which items are not known."""
        return self._ask(questions.ask_list(request))

    def answers(self, requests: Sequence[RecommendRequest]) -> list[RecommendReply | Problem]:
        """Return the replies to several requests; the problem of one that cannot be answered stands in its place."""
        return self._ask(questions.ask_lists(requests)).replies

    def pages(self, request: RecommendRequest) -> Iterator[RecommendReply]:
        """Yield the pages of a list, until no allowed item is left."""
        cursor: str | None = request.cursor or ""
        while cursor is not None:
            page = self.answer(request.model_copy(update={"cursor": cursor}))
            yield page
            cursor = page.cursor

    def similar(self, item_id: str, **options: Unpack[SimilarOptions]) -> list[SimilarItem]:
        """List the neighbours of an item, the most similar first; the options are those of `SimilarRequest`."""
        return self.answer_similar(questions.similar_request(item_id, options)).items

    def answer_similar(self, request: SimilarRequest) -> SimilarReply:
        """Return the whole reply to a request for similar items, with the sources that were asked."""
        return self._ask(questions.ask_similar(request))

    def find_items(self, query: str = "", limit: int = 10, model: str | None = None) -> list[FoundItem]:
        """Search titles and canonical interests by the beginnings of words; without a query, list the most popular items."""
        return self._ask(questions.ask_items(query, limit, model)).items

    def item(self, item_id: str, model: str | None = None) -> Item:
        """Return everything that is known about an item."""
        return self._ask(questions.ask_item(item_id, model))

    def add_item(self, item: NewItem) -> AddedItem:
        """Add an item to the catalogue; needs an admin key."""
        return self._ask(questions.add_item(item))

    def change_item(self, item_id: str, change: ItemChange) -> Item:
        """Change the given facts of an item; needs an admin key."""
        return self._ask(questions.change_item(item_id, change))

    def delete_item(self, item_id: str) -> None:
        """Take an item out of all lists; needs an admin key."""
        self._ask(questions.delete_item(item_id))

    def change_items(self, items: Iterable[NewItem | Mapping[str, Any]]) -> list[BulkResult]:
        """Add, change or delete up to `MAX_BULK` items; return what became of each. Needs an admin key.

        Args:
            items: new items, or for known ones an `item_id` with the facts that change, or with `"delete": True`.
        """
        return self._ask(questions.change_items(items)).lines

    def send_lines(self, content: bytes) -> list[BulkResult]:
        """Do as `change_items` with JSON lines as they are sent."""
        return self._ask(questions.send_lines(content)).lines

    def send_event(self, event: Event) -> EventsReply:
        """Tell what a user did; it is durable when this returns, and telling it again changes nothing."""
        return self._ask(questions.send_events([event]))

    def send_events(self, events: Iterable[Event]) -> EventsReply:
        """Tell up to `serve.contract.event_schemas.MAX_EVENTS` events; the reply's `errors` are those that were not taken."""
        return self._ask(questions.send_events(events))

    def models(self) -> Versions:
        """List the loaded versions."""
        return self._ask(questions.ask_models())

    def promote(self, model: str) -> Versions:
        """Make a loaded version the default; needs an admin key."""
        return self._ask(questions.change_default(ChangeDefault(action="promote", model=model)))

    def roll_back(self) -> Versions:
        """Return to the default version before the last promotion; needs an admin key."""
        return self._ask(questions.change_default(ChangeDefault(action="roll_back")))

    def _ask(self, question: Question[Reply]) -> Reply:
        for tries_left in range(self._retries, -1, -1):
            with naming_failures(self.url, self._timeout):
                response = self._http.request(**question.arguments(self.url))
            seconds = retry_seconds(response)
            if not tries_left or seconds is None or seconds > self._max_wait:
                break
            self._sleep(seconds)
        return read_reply(question, response)


class AsyncClient:
    """Speaks to one endpoint as `Client` does; every method is awaited. It is of one event loop, and `async with` closes it."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        key: str = "",
        timeout_seconds: float = 30.0,
        *,
        retries: int = 2,
        max_wait_seconds: float = 10.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.url, self.headers = url.rstrip("/"), key_headers(key)
        self._timeout, self._retries, self._max_wait, self._sleep = timeout_seconds, retries, max_wait_seconds, sleep
        self._http = httpx.AsyncClient(headers=self.headers, timeout=timeout_seconds, follow_redirects=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the connections."""
        await self.close()

    async def recommend(self, history: Sequence[str] | None = None, **options: Unpack[ListOptions]) -> list[RecommendedItem]:
        """List what comes next after a history, best first; the options are those of `RecommendRequest`."""
        return (await self.answer(questions.list_request(history, options))).items

    async def answer(self, request: RecommendRequest) -> RecommendReply:
        """Return the whole reply to a request: the list, who made it, and which items are not known."""
        return await self._ask(questions.ask_list(request))

    async def answers(self, requests: Sequence[RecommendRequest]) -> list[RecommendReply | Problem]:
        """Return the replies to several requests; the problem of one that cannot be answered stands in its place."""
        return (await self._ask(questions.ask_lists(requests))).replies

    async def pages(self, request: RecommendRequest) -> AsyncIterator[RecommendReply]:
        """Yield the pages of a list, until no allowed item is left."""
        cursor: str | None = request.cursor or ""
        while cursor is not None:
            page = await self.answer(request.model_copy(update={"cursor": cursor}))
            yield page
            cursor = page.cursor

    async def similar(self, item_id: str, **options: Unpack[SimilarOptions]) -> list[SimilarItem]:
        """List the neighbours of an item, the most similar first; the options are those of `SimilarRequest`."""
        return (await self.answer_similar(questions.similar_request(item_id, options))).items

    async def answer_similar(self, request: SimilarRequest) -> SimilarReply:
        """Return the whole reply to a request for similar items, with the sources that were asked."""
        return await self._ask(questions.ask_similar(request))

    async def find_items(self, query: str = "", limit: int = 10, model: str | None = None) -> list[FoundItem]:
        """Search titles and canonical interests by the beginnings of words; without a query, list the most popular items."""
        return (await self._ask(questions.ask_items(query, limit, model))).items

    async def item(self, item_id: str, model: str | None = None) -> Item:
        """Return everything that is known about an item."""
        return await self._ask(questions.ask_item(item_id, model))

    async def add_item(self, item: NewItem) -> AddedItem:
        """Add an item to the catalogue; needs an admin key."""
        return await self._ask(questions.add_item(item))

    async def change_item(self, item_id: str, change: ItemChange) -> Item:
        """Change the given facts of an item; needs an admin key."""
        return await self._ask(questions.change_item(item_id, change))

    async def delete_item(self, item_id: str) -> None:
        """Take an item out of all lists; needs an admin key."""
        await self._ask(questions.delete_item(item_id))

    async def change_items(self, items: Iterable[NewItem | Mapping[str, Any]]) -> list[BulkResult]:
        """Add, change or delete up to `MAX_BULK` items; return what became of each. Needs an admin key.

        Args:
            items: new items, or for known ones an `item_id` with the facts that change, or with `"delete": True`.
        """
        return (await self._ask(questions.change_items(items))).lines

    async def send_lines(self, content: bytes) -> list[BulkResult]:
        """Do as `change_items` with JSON lines as they are sent."""
        return (await self._ask(questions.send_lines(content))).lines

    async def send_event(self, event: Event) -> EventsReply:
        """Tell what a user did; it is durable when this returns, and telling it again changes nothing."""
        return await self._ask(questions.send_events([event]))

    async def send_events(self, events: Iterable[Event]) -> EventsReply:
        """Tell up to `serve.contract.event_schemas.MAX_EVENTS` events; the reply's `errors` are those that were not taken."""
        return await self._ask(questions.send_events(events))

    async def models(self) -> Versions:
        """List the loaded versions."""
        return await self._ask(questions.ask_models())

    async def promote(self, model: str) -> Versions:
        """Make a loaded version the default; needs an admin key."""
        return await self._ask(questions.change_default(ChangeDefault(action="promote", model=model)))

    async def roll_back(self) -> Versions:
        """Return to the default version before the last promotion; needs an admin key."""
        return await self._ask(questions.change_default(ChangeDefault(action="roll_back")))

    async def _ask(self, question: Question[Reply]) -> Reply:
        for tries_left in range(self._retries, -1, -1):
            with naming_failures(self.url, self._timeout):
                response = await self._http.request(**question.arguments(self.url))
            seconds = retry_seconds(response)
            if not tries_left or seconds is None or seconds > self._max_wait:
                break
            await self._sleep(seconds)
        return read_reply(question, response)


if __name__ == "__main__":
    from serve.asking.command_line import app

    app()
