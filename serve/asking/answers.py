"""How answers of an endpoint are read: replies, typed errors, and when a request is worth another try."""

import email.utils
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from pydantic import ValidationError

from serve.asking.questions import Question, Reply
from serve.contract.schemas import Problem

DEFAULT_URL = "http://127.0.0.1:8000"
RETRIED = (429, 503)
"""Statuses of requests that the endpoint did not work on."""


class EndpointError(RuntimeError):
    """The endpoint refused a request or failed at it; its text is the title and the detail."""

    def __init__(self, title: str, detail: str, status: int | None = None, problem: Problem | None = None) -> None:
        super().__init__(f"{title}: {detail}")
        self.title, self.detail = title, detail
        self.status = status
        """HTTP status; None where the answer did not come."""
        self.problem = problem
        """What the endpoint said, with the items and fields it means; None where the answer is of something else."""


class InvalidRequestError(EndpointError):
    """The request does not follow the contract, or the version cannot do what it asks for (400, 413, 422)."""


class NotAllowedError(EndpointError):
    """There is no valid key, or it may not do this (401, 403)."""


class NotFoundError(EndpointError):
    """There is no such item, version or route (404)."""


class ConflictError(EndpointError):
    """The state of the endpoint does not allow it: the item exists, or the list of a cursor has changed (409)."""


class BusyError(EndpointError):
    """The endpoint is too busy, too slow, or not ready; another try may succeed (429, 503, 504)."""


class ServerError(EndpointError):
    """The endpoint failed (another 5xx)."""


_KINDS: dict[int, type[EndpointError]] = {
    **dict.fromkeys((400, 413, 422), InvalidRequestError),
    **dict.fromkeys((401, 403), NotAllowedError),
    404: NotFoundError,
    409: ConflictError,
    **dict.fromkeys((429, 503, 504), BusyError),
}


def read_reply(question: Question[Reply], response: httpx.Response) -> Reply:
    """Read the reply to a question.

    Raises:
        EndpointError: the answer is a problem, or not one of the endpoint.
    """
    status = response.status_code
    kind = _KINDS.get(status, ServerError if status >= 500 else EndpointError)
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        problem = _read(Problem, response, response.content)
        raise kind(problem.title, problem.detail, status, problem)
    if not response.is_success:
        detail = f"{response.url} answered {status} in a form that is not DIGR's; is the address right?"
        raise kind(f"{status} {response.reason_phrase}".strip(), detail, status)
    content = response.content
    if question.answer == "lines":
        content = b'{"lines":[' + b",".join(line for line in content.splitlines() if line) + b"]}"
    return _read(question.form, response, b"{}" if question.answer == "nothing" else content)


def _read(form: type[Reply], response: httpx.Response, content: bytes) -> Reply:
    try:
        return form.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole answer"
        detail = f"{response.url} answered what is no {form.__name__} ({where}: {first['msg']}); is the address right?"
        raise EndpointError("Not an answer of DIGR's endpoint", detail, response.status_code) from None


def retry_seconds(response: httpx.Response) -> float | None:
    """Return the wait before another try that an answer asks for in `Retry-After`; None if it asks for none."""
    asked = response.headers.get("retry-after")
    if response.status_code not in RETRIED or asked is None:
        return None
    if asked.strip().isdigit():
        return float(asked)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return None


@contextmanager
def naming_failures(url: str, timeout_seconds: float) -> Iterator[None]:
    """Say what happened where no answer comes.

    Raises:
        ValueError: the address is none.
        ConnectionError: no server listens there.
        EndpointError: the answer took too long, or the connection was lost.
    """
    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise ValueError(f"{url}: not an address of a server ({error}); give one such as {DEFAULT_URL}") from None
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        message = f"{url}: no server listens there ({error}); start one with `digr serve RUN`, or give another address"
        raise ConnectionError(message) from None
    except httpx.TimeoutException:
        detail = f"{url} did not answer within {timeout_seconds:g} seconds; it may be busy, try again later"
        raise EndpointError("No answer", detail) from None
    except httpx.TransportError as error:
        raise EndpointError("No answer", f"{url}: the connection was lost: {error}") from None


def key_headers(key: str) -> dict[str, str]:
    """Return the headers that carry an API key.

    Raises:
        ValueError: no key looks like this; the message does not show it.
    """
    if not (key.isascii() and key.isprintable()):  # or the error of a lower layer would show the key
        raise ValueError("the API key has characters that no key has, such as a line break; keys are of ASCII letters and signs")
    return {"Authorization": f"Bearer {key}"} if key else {}
