"""Errors of the endpoint, as application/problem+json (RFC 9457); each says what the caller can do."""

import json
import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from serve.contract.schemas import Problem

MEDIA_TYPE = "application/problem+json"
REPLY_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
"""What a browser is told about a reply that says nothing else: show it as what it is, run nothing in it, name it to nobody."""
LINE_IS_FULL = "Digr-Line-Is-Full"
"""Header by which serve.edge tells a full line from a key that has used up its rate."""
LET_IN = "Digr-Let-In"
"""Header by which serve.edge learns whom a deployment knows, and which it takes off."""

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "description": "The request cannot be answered", "content": {MEDIA_TYPE: {}}},
    "5XX": {"model": Problem, "description": "The server cannot answer now", "content": {MEDIA_TYPE: {}}},
}


class ProblemError(Exception):
    """An error whose answer is a problem document."""

    def __init__(
        self, type: str, status: int, title: str, detail: str, *, headers: dict[str, str] | None = None, **more: list[str] | None
    ) -> None:
        super().__init__(detail)
        self.problem = Problem(type=type, status=status, title=title, detail=detail, **more)
        self.headers = headers

    def response(self) -> Response:
        """Write it as application/problem+json."""
        content = json.dumps(self.problem.model_dump(exclude_none=True))
        return Response(content, self.problem.status, headers=REPLY_HEADERS | (self.headers or {}), media_type=MEDIA_TYPE)


async def _answer_problem(request: Request, error: ProblemError) -> Response:
    return error.response()


async def _answer_invalid(request: Request, error: RequestValidationError) -> Response:
    """Name every field that breaks the contract."""
    errors = error.errors()
    if any(item["type"] == "json_invalid" for item in errors):
        return not_json(str(errors[0].get("ctx", {}).get("error", errors[0]["msg"]))).response()
    found = [(".".join(str(part) for part in item["loc"][1:]) or str(item["loc"][0]), item["msg"]) for item in errors]
    detail = "; ".join(f"{field}: {message}" for field, message in found[:20])
    fields = list(dict.fromkeys(field for field, _ in found))[:20]
    return ProblemError("invalid-request", 422, "The request does not follow the contract", detail, fields=fields).response()


async def _answer_http(request: Request, error: HTTPException) -> Response:
    """Answer requests that the framework refuses: unknown routes, wrong methods, unreadable bodies."""
    headers = dict(error.headers or {})
    if error.status_code == 404:
        found = ProblemError("unknown-route", 404, "No such route", f"there is no {request.url.path}; /docs lists the routes")
    elif error.status_code == 405:
        allowed = headers.get("Allow") or headers.get("allow") or "another one"
        detail = f"{request.method} cannot be used on {request.url.path}; use {allowed}"
        found = ProblemError("wrong-method", 405, "Wrong method", detail, headers=headers)
    elif error.status_code == 400:
        found = not_json(str(error.detail))
    else:
        found = ProblemError(
            "http-error", error.status_code, "The request cannot be answered", str(error.detail), headers=headers
        )
    return found.response()


async def _answer_failure(request: Request, error: Exception) -> Response:
    return internal_error().response()


def add_problem_handlers(api: FastAPI) -> None:
    """Make an application answer all errors with problem documents."""
    api.exception_handler(ProblemError)(_answer_problem)
    api.exception_handler(RequestValidationError)(_answer_invalid)
    api.exception_handler(HTTPException)(_answer_http)
    api.exception_handler(Exception)(_answer_failure)


def not_json(cause: str) -> ProblemError:
    """Say why the body is not JSON."""
    return ProblemError(
        "invalid-json", 400, "The body is not JSON", f"the body cannot be read as JSON: {cause}; send one JSON object"
    )


def k_too_large(k: int, beam_width: int, num_items: int) -> ProblemError:
    """Say how many items a list can have."""
    limit = f"the {num_items} items of the catalogue" if num_items < beam_width else f"the beam width {beam_width}"
    detail = f"k is {k}, at most {limit} can be listed; ask for fewer"
    return ProblemError("k-too-large", 422, "More items wanted than can be listed", detail, fields=["k"])


def beam_too_wide(beam_width: int, largest: int) -> ProblemError:
    """Say how wide the beam may be."""
    detail = f"beam_width is {beam_width}, this deployment searches with at most {largest}; leave it out or lower it"
    return ProblemError("beam-too-wide", 422, "Beam too wide", detail, fields=["beam_width"])


def empty_history() -> ProblemError:
    """Say that a request needs a history, a user or seeds."""
    detail = "there is nothing to go on from: give history (item ids, oldest first), user_id or seeds"
    return ProblemError("empty-history", 422, "No history", detail, fields=["history", "user_id", "seeds"])


def two_histories() -> ProblemError:
    """Say that a request may give a history or a user, not both."""
    detail = "history and user_id are both given; give one of them, and put further items into seeds"
    return ProblemError("two-histories", 422, "Two histories", detail, fields=["history", "user_id"])


def unknown_items(unknown: list[str]) -> ProblemError:
    """Name the items that are not in the catalogue."""
    detail = f'{len(unknown)} items of the history are not in the catalogue; leave them out, or send unknown="ignore"'
    title = "The history names items that are not in the catalogue"
    return ProblemError("unknown-items", 422, title, detail, unknown_items=unknown, fields=["history"])


def cannot_steer() -> ProblemError:
    """Say that there is no ranker to steer."""
    detail = "this version has no ranker, so its lists cannot be steered; leave steer out or ask another version"
    return ProblemError("cannot-steer", 422, "Nothing to steer", detail, fields=["steer"])


def no_index(field: str, wanted: str) -> ProblemError:
    """Say that the version has no ranking index, and what needs one."""
    missing = f"the run of this version has no ranking index, which is needed for {wanted}"
    detail = f"{missing}; ask another version, or build it with `digr neighbours CONFIG`"
    return ProblemError("no-ranking-index", 422, "No ranking index", detail, fields=[field])


def unknown_interest(name: str, at: int) -> ProblemError:
    """Name the interest that is not canonical in this version, and its place among the wishes, from 0."""
    detail = f"{name!r} is no canonical interest of this version; send it as text, which is taken for the nearest ones"
    return ProblemError("unknown-interest", 422, "No such interest", detail, fields=[f"steer.{at}.interest"])


def unknown_item(item_id: str) -> ProblemError:
    """Say that no item has this id."""
    detail = f"item {item_id!r} is not in the catalogue; GET /v1/items?query= finds items by title"
    return ProblemError("unknown-item", 404, "No such item", detail, unknown_items=[item_id])


def no_items_left(num_items: int) -> ProblemError:
    """Say that the filters exclude everything."""
    detail = f"allow, deny and exclude_history leave none of the {num_items} items; loosen them"
    return ProblemError("no-items-left", 422, "The filters leave no item", detail, fields=["allow", "deny", "exclude_history"])


def currency_needed(known: Sequence[str]) -> ProblemError:
    """Say that a price filter needs a currency, because prices have several."""
    detail = f"prices of this version are in {', '.join(known)}; give a currency beside min_price and max_price"
    return ProblemError("currency-needed", 422, "A price without its currency", detail, fields=["currency"])


def unknown_model(name: str, known: list[str]) -> ProblemError:
    """Name the versions that are loaded."""
    detail = f"there is no model {name!r}; loaded are {', '.join(known)}"
    return ProblemError("unknown-model", 404, "No such model", detail, fields=["model"])


def deadline_passed(seconds: float | None) -> ProblemError:
    """Say that the answer took too long."""
    limit = "in time" if seconds is None else f"within {seconds:g} seconds"
    detail = f"there was no answer {limit}; the server is busy, try again later"
    return ProblemError("deadline-passed", 504, "Too slow", detail, headers={"Retry-After": "1"})


def overloaded(pending: int | None) -> ProblemError:
    """Say that the waiting line is full."""
    waiting = "too many lists wait" if pending is None else f"{pending} lists wait"
    detail = f"{waiting} already; try again after the time of Retry-After"
    return ProblemError("overloaded", 429, "Too busy", detail, headers={"Retry-After": "1", LINE_IS_FULL: "1"})


def rate_limited(name: str, seconds: float, num_lists: int = 1) -> ProblemError:
    """Say when the key may send the request."""
    wait = str(math.ceil(seconds))
    cost = f", and {num_lists} lists cost as much as {num_lists} requests" if num_lists > 1 else ""
    detail = f"the key {name!r} has used up its rate{cost}; try again in {wait} s"
    return ProblemError("rate-limited", 429, "Too many requests", detail, headers={"Retry-After": wait})


def unauthorised(detail: str) -> ProblemError:
    """Say that a key is needed."""
    return ProblemError("unauthorised", 401, "No valid API key", detail, headers={"WWW-Authenticate": "Bearer"})


def forbidden(name: str, role: str) -> ProblemError:
    """Say that the key may not do this."""
    detail = f"this route needs an admin key, {name!r} is one for {role}"
    return ProblemError("forbidden", 403, "The key may not do this", detail)


def body_too_large(limit: int) -> ProblemError:
    """Say how large a body may be."""
    return ProblemError("body-too-large", 413, "The body is too large", f"a body may have {limit} bytes; send less at once")


def too_many_bodies() -> ProblemError:
    """Say that too many bodies are on their way."""
    detail = "too many bodies are on their way already; send what was begun, then try again"
    return ProblemError("too-many-bodies", 429, "Too many bodies at once", detail, headers={"Retry-After": "1"})


def too_many_unknown() -> ProblemError:
    """Say that too many requests without a known key are answered at once."""
    detail = "too many requests without a key that is known here are being answered; try again after the time of Retry-After"
    return ProblemError("too-many-unknown", 429, "Too many requests without a key", detail, headers={"Retry-After": "1"})


def decoder_down(cause: str) -> ProblemError:
    """Say that no list can be made here any more."""
    detail = f"{cause}; this replica will be replaced, try again after the time of Retry-After"
    return ProblemError("decoder-down", 503, "No lists can be made", detail, headers={"Retry-After": "1"})


def metrics_incomplete(cause: str) -> ProblemError:
    """Say that the numbers of the other replicas are not to be had."""
    detail = f"the metrics of all replicas cannot be read ({cause}); try again"
    return ProblemError("metrics-incomplete", 503, "Metrics are incomplete", detail, headers={"Retry-After": "1"})


def not_ready() -> ProblemError:
    """Say that no version is loaded, or that the replica is going down."""
    detail = "this replica is starting or going down; try again after the time of Retry-After"
    return ProblemError("not-ready", 503, "Not ready", detail, headers={"Retry-After": "1"})


def internal_error() -> ProblemError:
    """Say that the server failed."""
    return ProblemError("internal-error", 500, "Internal error", "the server failed; its log says why")


def no_state_dir() -> ProblemError:
    """Say that the deployment has no folder to keep changes in."""
    detail = "this deployment has no state_dir to keep changes in; set it in serve/config.yaml"
    return ProblemError("no-state-dir", 409, "Nowhere to keep it", detail)


def nothing_to_choose(action: str) -> ProblemError:
    """Say why the default version cannot change."""
    detail = "promote needs a model" if action == "promote" else "there is no earlier default version to go back to"
    return ProblemError("nothing-to-choose", 422, "No version to make the default", detail, fields=["model"])
