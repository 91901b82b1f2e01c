"""A command-line client and load generator: `python -m serve.client recommend --history ITEM ITEM`, `... load --rate 50`.

The API key is read from the environment variable DIGR_API_KEY, never from the command line, where others can see it.
"""

import argparse
import asyncio
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np

from serve.item_schemas import AddedItem, FoundItems, Item, NewItem
from serve.load import Load, Second, send_load
from serve.schemas import ChangeDefault, Problem, RecommendReply, RecommendRequest, Versions


class Client:
    """Speaks to one endpoint."""

    def __init__(self, url: str, key: str = "", timeout_seconds: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = timeout_seconds

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None, **query: Any) -> bytes | Problem:
        """Send one request; what the server calls a problem is returned as one.

        Raises:
            httpx.HTTPError: there is no server at the address, or it answers with something that is not its contract.
        """
        given = {name: value for name, value in query.items() if value is not None}
        response = httpx.request(
            method, self.url + path, json=body, params=given, headers=self.headers, timeout=self._timeout, follow_redirects=False
        )
        if response.headers.get("content-type", "").startswith("application/problem+json"):
            return Problem.model_validate_json(response.content)
        response.raise_for_status()
        return response.content


def _recommend(client: Client, arguments: argparse.Namespace) -> Problem | None:
    """Print the list for a history or a user."""
    request = RecommendRequest(
        history=arguments.history,
        user_id=arguments.user,
        k=arguments.k,
        exclude_history=arguments.exclude_history,
        unknown="ignore" if arguments.ignore_unknown else "refuse",
        model=arguments.model,
    )
    found = client.ask("POST", "/v1/recommend", request.model_dump(exclude_none=True))
    if isinstance(found, Problem):
        return found
    reply = RecommendReply.model_validate_json(found)
    if reply.source == "popularity":
        print("nothing of this history is known: the most popular items", file=sys.stderr)
    if reply.ignored_items:
        print(f"not in the catalogue, left out: {', '.join(reply.ignored_items)}", file=sys.stderr)
    for place, item in enumerate(reply.items, 1):
        because = f"  because: {', '.join(item.reasons)}" if item.reasons else ""
        score = "       -" if item.score is None else f"{item.score:8.3f}"
        print(f"{place:3d}  {score}  {item.item_id}  {item.title}{because}")
    return None


def _items(client: Client, arguments: argparse.Namespace) -> Problem | None:
    """Print one item, or those whose titles have the words."""
    if arguments.item:
        found = client.ask("GET", f"/v1/items/{quote(arguments.item, safe='')}", model=arguments.model)
        if isinstance(found, Problem):
            return found
        print(Item.model_validate_json(found).model_dump_json(indent=2, exclude_none=True))
        return None
    found = client.ask("GET", "/v1/items", query=" ".join(arguments.words), limit=arguments.limit, model=arguments.model)
    if isinstance(found, Problem):
        return found
    for item in FoundItems.model_validate_json(found).items:
        print(f"{item.item_id}  {item.title}")
    return None


def _add(client: Client, arguments: argparse.Namespace) -> Problem | None:
    """Add an item to the catalogue; print its semantic ID in each version."""
    item = NewItem(
        item_id=arguments.item,
        title=arguments.title,
        description=arguments.description,
        brand=arguments.brand,
        categories=arguments.category,
        price=arguments.price,
        currency=arguments.currency,
        interests=arguments.interest,
    )
    found = client.ask("POST", "/v1/items", item.model_dump())
    if isinstance(found, Problem):
        return found
    for name, sid in AddedItem.model_validate_json(found).sids.items():
        print(f"{name}  {' '.join(map(str, sid))}")
    return None


def _models(client: Client, arguments: argparse.Namespace) -> Problem | None:
    """List the loaded versions, after changing the default one if asked to."""
    change = None
    if arguments.promote:
        change = ChangeDefault(action="promote", model=arguments.promote)
    elif arguments.roll_back:
        change = ChangeDefault(action="roll_back")
    found = client.ask("POST", "/v1/models", change.model_dump(exclude_none=True)) if change else client.ask("GET", "/v1/models")
    if isinstance(found, Problem):
        return found
    for version in Versions.model_validate_json(found).data:
        mark = "*" if version.default else " "
        policy = f"{version.policy} {version.policy_digest}"
        print(f"{mark} {version.id}  {policy}  ranker {version.ranker}  {version.num_items} items")
    return None


def _load(client: Client, arguments: argparse.Namespace) -> Problem | bool:
    """Send open-loop load; True where every request succeeded."""
    rng = np.random.default_rng(arguments.seed)
    if arguments.bodies:
        bodies = [line for line in arguments.bodies.read_bytes().splitlines() if line.strip()]
    else:
        found = client.ask("GET", "/v1/items", limit=50, model=arguments.model)
        if isinstance(found, Problem):
            return found
        ids = [item.item_id for item in FoundItems.model_validate_json(found).items]
        bodies = random_bodies(ids, arguments.history_length, arguments.k, arguments.model, rng)
    load = Load(
        url=f"{client.url}/v1/recommend",
        bodies=bodies,
        rate=arguments.rate,
        seconds=arguments.seconds,
        timeout_seconds=arguments.timeout,
        headers=client.headers,
        retries=arguments.retries,
    )
    summary = asyncio.run(send_load(load, rng, _tell))
    print(summary.json(), flush=True)
    return not summary.failures


def random_bodies(ids: Sequence[str], longest: int, k: int, model: str | None, rng: np.random.Generator) -> list[bytes]:
    """Write 200 requests with histories of 1 to `longest` of these items."""
    histories = [rng.choice(ids, rng.integers(1, longest + 1)).tolist() for _ in range(200)]
    requests = [RecommendRequest(history=history, k=k, model=model) for history in histories]
    return [request.model_dump_json(exclude_none=True).encode() for request in requests]


def _tell(now: Second) -> None:
    times = "" if math.isnan(now.p50_seconds) else f"  p50 {now.p50_seconds * 1000:.0f} ms  p99 {now.p99_seconds * 1000:.0f} ms"
    line = f"{now.second:4d} s  sent {now.sent}  ok {now.ok}  failed {now.failed}  in flight {now.in_flight}{times}"
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serve.client", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the application")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    one = verbs.add_parser("recommend", help="print what comes next after a history")
    whose = one.add_mutually_exclusive_group(required=True)
    whose.add_argument("--history", nargs="+", metavar="ITEM", help="item ids, oldest first")
    whose.add_argument("--user", help="a user of the run")
    one.add_argument("--k", type=int, default=10, help="items wanted")
    one.add_argument("--exclude-history", action="store_true", help="leave out the history's own items")
    one.add_argument("--ignore-unknown", action="store_true", help="leave out items that are not in the catalogue")
    one.set_defaults(run=_recommend)

    one = verbs.add_parser("items", help="search titles, or print one item")
    one.add_argument("words", nargs="*", help="beginnings of words of the title")
    one.add_argument("--item", help="id of one item to print")
    one.add_argument("--limit", type=int, default=10, help="items listed at most")
    one.set_defaults(run=_items)

    one = verbs.add_parser("add", help="add an item to the catalogue; needs an admin key")
    one.add_argument("item", help="its id")
    one.add_argument("--title", required=True)
    one.add_argument("--description")
    one.add_argument("--brand")
    one.add_argument("--category", action="append", default=[])
    one.add_argument("--price", type=float)
    one.add_argument("--currency", help="ISO 4217 code of the price's currency, such as EUR")
    one.add_argument("--interest", action="append", default=[], help="a trusted interest, strongest first; may be repeated")
    one.set_defaults(run=_add)

    one = verbs.add_parser("models", help="list the loaded versions")
    change = one.add_mutually_exclusive_group()
    change.add_argument("--promote", metavar="NAME", help="make this version the default; needs an admin key")
    change.add_argument("--roll-back", action="store_true", help="return to the default before; needs an admin key")
    one.set_defaults(run=_models)

    one = verbs.add_parser("load", help="send open-loop load; the last line is a JSON summary")
    one.add_argument("--rate", type=float, required=True, help="requests per second")
    one.add_argument("--seconds", type=float, default=10.0, help="how long requests are sent")
    one.add_argument("--bodies", type=Path, help="file of request bodies, one JSON object a line; popular items if not given")
    one.add_argument("--history-length", type=int, default=5, help="longest history of the requests")
    one.add_argument("--k", type=int, default=10, help="items wanted")
    one.add_argument("--timeout", type=float, default=30.0, help="seconds until a request counts as failed")
    one.add_argument("--retries", type=int, default=0, help="further tries after 429, 502, 503, 504 or a lost connection")
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=_load)
    for name in ("recommend", "items", "load"):
        verbs.choices[name].add_argument("--model", help="version to ask")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; 0 for success, 1 for a problem or failed requests, 2 where there is no server or a value is not allowed."""
    arguments = _parser().parse_args(argv)
    client = Client(arguments.url, os.environ.get("DIGR_API_KEY", ""))
    try:
        found = arguments.run(client, arguments)
    except (httpx.HTTPError, ValueError, OSError) as error:
        print(f"error: {arguments.url}: {error}", file=sys.stderr)
        return 2
    if isinstance(found, Problem):
        print(f"error: {found.detail}" + (f": {', '.join(found.unknown_items)}" if found.unknown_items else ""), file=sys.stderr)
        return 1
    return 1 if found is False else 0


if __name__ == "__main__":
    sys.exit(main())
