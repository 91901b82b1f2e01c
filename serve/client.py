"""Ask a running endpoint from Python; `python -m serve.client` and `digr ask` do so from a shell (`serve.command_line`).

from serve.client import Client

client = Client("http://127.0.0.1:8000")
for item in client.recommend(history=["item-17", "item-4"], k=5):
    print(item.title, item.score, item.reasons)
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from serve.item_schemas import AddedItem, BulkResult, FoundItem, FoundItems, Item, ItemChange, NewItem
from serve.schemas import (
    ChangeDefault,
    Contract,
    ItemFilter,
    Problem,
    RecommendedItem,
    RecommendReply,
    RecommendRequest,
    Steer,
    Versions,
)

DEFAULT_URL = "http://127.0.0.1:8000"

Reply = TypeVar("Reply", bound=Contract)


class EndpointError(RuntimeError):
    """The endpoint refused a request or failed at it; its text is the title and the detail."""

    def __init__(self, title: str, detail: str, status: int | None = None, problem: Problem | None = None) -> None:
        super().__init__(f"{title}: {detail}")
        self.title, self.detail = title, detail
        self.status = status
        """HTTP status; None where the answer did not come."""
        self.problem = problem
        """What the endpoint said, with the items and fields it means; None where the answer is of something else."""


class Client:
    """Speaks to one endpoint; every method waits for the answer.

    All of them raise `EndpointError` for an answer that is a problem, `ConnectionError` where no server listens, and `ValueError`
    for what the contract does not allow.
    """

    def __init__(self, url: str = DEFAULT_URL, key: str = "", timeout_seconds: float = 30.0) -> None:
        if not (key.isascii() and key.isprintable()):  # or the error of a lower layer would show the key
            raise ValueError(
                "the API key has characters that no key has, such as a line break; keys are of ASCII letters and signs"
            )
        self.url = url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = timeout_seconds

    def recommend(
        self,
        history: Sequence[str] | None = None,
        *,
        user_id: str | None = None,
        seeds: Sequence[str] | None = None,
        k: int = 10,
        allow: ItemFilter | None = None,
        deny: ItemFilter | None = None,
        steer: Sequence[Steer] = (),
        exclude_history: bool = False,
        unknown: Literal["ignore", "refuse"] = "ignore",
        model: str | None = None,
    ) -> list[RecommendedItem]:
        """List what comes next after a history, best first; the arguments are those of `RecommendRequest`."""
        request = RecommendRequest(
            history=None if history is None else list(history),
            user_id=user_id,
            seeds=None if seeds is None else list(seeds),
            k=k,
            allow=allow,
            deny=deny,
            steer=list(steer),
            exclude_history=exclude_history,
            unknown=unknown,
            model=model,
        )
        return self.answer(request).items

    def answer(self, request: RecommendRequest) -> RecommendReply:
        """Return the whole reply to a request: the list, who made it, and which items are not known."""
        return self._ask(RecommendReply, "POST", "/v1/recommend", request.model_dump(exclude_none=True))

    def find_items(self, query: str = "", limit: int = 10, model: str | None = None) -> list[FoundItem]:
        """Search titles and canonical interests by the beginnings of words; without a query, list the most popular items."""
        return self._ask(FoundItems, "GET", "/v1/items", query=query, limit=limit, model=model).items

    def item(self, item_id: str, model: str | None = None) -> Item:
        """Return everything that is known about an item."""
        return self._ask(Item, "GET", _path_of(item_id), model=model)

    def add_item(self, item: NewItem) -> AddedItem:
        """Add an item to the catalogue; needs an admin key."""
        return self._ask(AddedItem, "POST", "/v1/items", item.model_dump())

    def change_item(self, item_id: str, change: ItemChange) -> Item:
        """Change the facts of an item that are set in `change`; needs an admin key."""
        return self._ask(Item, "PATCH", _path_of(item_id), change.model_dump(exclude_unset=True))

    def delete_item(self, item_id: str) -> None:
        """Take an item out of all lists; needs an admin key."""
        self._checked(self._send("DELETE", _path_of(item_id), None, {}))

    def change_items(self, lines: Iterable[Mapping[str, Any]]) -> list[BulkResult]:
        """Add, change or delete an item per line, at most `serve.item_schemas.MAX_BULK`; needs an admin key.

        A line of an unknown item has the fields of `NewItem`, one of a known item those of `ItemChange` that change, with
        `"delete": True` none.
        """
        content = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
        return self.send_lines(content)

    def send_lines(self, content: bytes) -> list[BulkResult]:
        """Do as `change_items` with lines that are JSON already."""
        response = self._checked(self._send("POST", "/v1/items/bulk", content, {}))
        return [_read(BulkResult, response, line) for line in response.content.splitlines()]

    def models(self) -> Versions:
        """List the loaded versions."""
        return self._ask(Versions, "GET", "/v1/models")

    def promote(self, model: str) -> Versions:
        """Make a loaded version the default; needs an admin key."""
        change = ChangeDefault(action="promote", model=model)
        return self._ask(Versions, "POST", "/v1/models", change.model_dump())

    def roll_back(self) -> Versions:
        """Return to the default version before the last promotion; needs an admin key."""
        return self._ask(Versions, "POST", "/v1/models", ChangeDefault(action="roll_back").model_dump())

    def _ask(self, form: type[Reply], method: str, path: str, body: dict[str, Any] | None = None, **query: Any) -> Reply:
        """Send one request and read the reply."""
        given = {name: value for name, value in query.items() if value is not None}
        return _read(form, self._checked(self._send(method, path, body, given)))

    def _checked(self, response: httpx.Response) -> httpx.Response:
        """Return an answer that is a success."""
        if response.headers.get("content-type", "").startswith("application/problem+json"):
            problem = _read(Problem, response)
            raise EndpointError(problem.title, problem.detail, response.status_code, problem)
        if not response.is_success:
            detail = f"{response.url} answered {response.status_code} in a form that is not DIGR's; is the address right?"
            raise EndpointError(f"{response.status_code} {response.reason_phrase}".strip(), detail, response.status_code)
        return response

    def _send(self, method: str, path: str, body: dict[str, Any] | bytes | None, query: dict[str, Any]) -> httpx.Response:
        """Send one request, bytes as JSON lines; redirects are not followed, so that a key goes to no other server."""
        lines = body if isinstance(body, bytes) else None
        form = {"Content-Type": "application/x-ndjson"} if lines is not None else {}
        try:
            return httpx.request(
                method,
                self.url + path,
                json=None if lines is not None else body,
                content=lines,
                params=query,
                headers=self.headers | form,
                timeout=self._timeout,
                follow_redirects=False,
            )
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise ValueError(f"{self.url}: not an address of a server ({error}); give one such as {DEFAULT_URL}") from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            message = f"{self.url}: no server listens there ({error}); start one with `digr serve RUN`, or give another address"
            raise ConnectionError(message) from None
        except httpx.TimeoutException:
            detail = f"{self.url} did not answer within {self._timeout:g} seconds; it may be busy, try again later"
            raise EndpointError("No answer", detail) from None
        except httpx.TransportError as error:
            raise EndpointError("No answer", f"{self.url}: the connection was lost: {error}") from None


def _path_of(item_id: str) -> str:
    return f"/v1/items/{quote(item_id, safe='')}"


def _read(form: type[Reply], response: httpx.Response, content: bytes | None = None) -> Reply:
    """Read a reply, or a line of it."""
    try:
        return form.model_validate_json(response.content if content is None else content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole answer"
        detail = f"{response.url} answered what is no {form.__name__} ({where}: {first['msg']}); is the address right?"
        raise EndpointError("Not an answer of DIGR's endpoint", detail, response.status_code) from None


if __name__ == "__main__":
    from serve.command_line import app

    app()
