"""A command-line client: `python -m serve.client --url http://127.0.0.1:8000 --history ITEM ITEM`."""

import argparse
import sys
from collections.abc import Sequence

import httpx

from serve.schemas import Problem, RecommendReply, RecommendRequest


def ask(url: str, request: RecommendRequest, timeout_seconds: float = 30.0) -> RecommendReply | Problem:
    """Send one request; what the server calls a problem is returned as one.

    Raises:
        httpx.HTTPError: there is no server at the address, or it answers with something that is not its contract.
    """
    response = httpx.post(f"{url.rstrip('/')}/v1/recommend", json=request.model_dump(), timeout=timeout_seconds)
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        return Problem.model_validate_json(response.content)
    response.raise_for_status()
    return RecommendReply.model_validate_json(response.content)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the list for a history; 0 for a list, 1 for a problem, 2 where there is no server."""
    parser = argparse.ArgumentParser(prog="python -m serve.client", description="Ask a DIGR endpoint what comes next.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the application")
    parser.add_argument("--history", nargs="+", required=True, metavar="ITEM", help="item ids, oldest first")
    parser.add_argument("--k", type=int, default=10, help="items wanted")
    arguments = parser.parse_args(argv)
    try:
        reply = ask(arguments.url, RecommendRequest(history=arguments.history, k=arguments.k, unknown="refuse"))
    except (httpx.HTTPError, ValueError) as error:
        print(f"error: {arguments.url}: {error}", file=sys.stderr)
        return 2
    if isinstance(reply, Problem):
        print(f"error: {reply.detail}" + (f": {', '.join(reply.unknown_items)}" if reply.unknown_items else ""), file=sys.stderr)
        return 1
    for place, item in enumerate(reply.items, 1):
        because = f"  because: {', '.join(item.reasons)}" if item.reasons else ""
        print(f"{place:3d}  {item.score or 0:8.3f}  {item.item_id}  {item.title}{because}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
