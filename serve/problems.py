"""Errors of the endpoint, as application/problem+json (RFC 9457) with a cause that a caller can act on."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from serve.schemas import Problem

PROBLEMS: dict[int | str, dict[str, Any]] = {
    422: {"model": Problem, "description": "The request cannot be answered", "content": {"application/problem+json": {}}}
}


class ProblemError(Exception):
    """An answer that is a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


async def answer_problem(request: Request, error: ProblemError) -> JSONResponse:
    """Write a problem as application/problem+json."""
    content = error.problem.model_dump(exclude_none=True)
    return JSONResponse(content, error.problem.status, media_type="application/problem+json")


async def answer_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """Name every field that is not as the contract says."""
    found = [(".".join(str(part) for part in item["loc"][1:]) or "body", item["msg"]) for item in error.errors()]
    problem = Problem(
        type="invalid-request",
        title="The request is not as the contract says",
        status=422,
        detail="; ".join(f"{field}: {message}" for field, message in found),
        fields=[field for field, _ in found],
    )
    return await answer_problem(request, ProblemError(problem))


def add_problem_handlers(api: FastAPI) -> None:
    """Make an application answer with problems."""
    api.exception_handler(ProblemError)(answer_problem)
    api.exception_handler(RequestValidationError)(answer_invalid)


def k_too_large(k: int, beam_width: int, num_items: int) -> Problem:
    """Say how many items can be listed."""
    limit = f"the {num_items} items of the catalogue" if num_items < beam_width else f"the beam width {beam_width}"
    return Problem(
        type="k-too-large",
        title="More items wanted than can be listed",
        status=422,
        detail=f"k is {k}, at most {limit} can be listed; ask for fewer",
        fields=["k"],
    )


def unknown_items(unknown: list[str]) -> Problem:
    """Name the items that are not in the catalogue."""
    return Problem(
        type="unknown-items",
        title="The history names items that are not in the catalogue",
        status=422,
        detail=f"{len(unknown)} of the history's items are not in the catalogue; leave them out",
        unknown_items=list(dict.fromkeys(unknown)),
        fields=["history"],
    )
