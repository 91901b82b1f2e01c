"""Commands that ask a running endpoint: `digr ask`, `digr items`, `digr models` and `digr load`; also `python -m serve.client`.

The API key is read from the environment variable DIGR_API_KEY, never from the command line, where others can see it.
Exit codes: 0, 2 for what the caller can mend (a refused request, a wrong option, no server there), 1 for a failure of the server.
"""

import asyncio
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve.asking import item_commands
from serve.asking.options import AsJson, Model, Url, ask_endpoint
from serve.asking.terminal import print_json, print_table, tell
from serve.client import DEFAULT_URL, Client
from serve.contract.item_schemas import MAX_SEARCH
from serve.contract.schemas import MAX_K, ItemBoost, RecommendRequest, Steer, Versions

if TYPE_CHECKING:
    from serve.asking.load import Second, Summary

PANEL = "A running endpoint"


def ask(
    item_ids: Annotated[list[str] | None, typer.Argument(metavar="ITEM", help="Item ids, oldest first.")] = None,
    *,
    history: Annotated[
        bool,
        typer.Option("--history", help="The words are a history: --history ITEM ITEM. An id with - in front needs -- before it."),
    ] = False,
    user: Annotated[str | None, typer.Option(metavar="USER", help="A user of the run, in place of a history.")] = None,
    k: Annotated[int, typer.Option(min=1, max=MAX_K, help="Items wanted.")] = 10,
    steer: Annotated[
        list[str] | None,
        typer.Option(metavar="WORDS[=WEIGHT]", help="More of this, or less: 'hiking' or 'hiking=-1'; may be repeated."),
    ] = None,
    boost: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHERE=WEIGHT", help="More of these items, or less: item:ID, category:NAME or brand:NAME; may be repeated."
        ),
    ] = None,
    diversity: Annotated[
        float, typer.Option(min=0, max=1, help="How much items differ from those before them, from 0 to 1.")
    ] = 0.0,
    exclude_history: Annotated[bool, typer.Option("--exclude-history", help="Leave out the history's own items.")] = False,
    ignore_unknown: Annotated[
        bool, typer.Option("--ignore-unknown", help="Leave out items that are not in the catalogue.")
    ] = False,
    model: Model = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Print what comes next after a history, or for a user."""
    if bool(item_ids) == (user is not None) or (history and not item_ids):
        raise typer.BadParameter("give either --history ITEM ITEM ... (oldest first) or --user USER")
    reply = ask_endpoint(
        url,
        lambda client: client.answer(
            RecommendRequest(
                history=item_ids or None,
                user_id=user,
                k=k,
                steer=[read_steer(words) for words in steer or []],
                boosts=[read_boost(words) for words in boost or []],
                diversity=diversity,
                exclude_history=exclude_history,
                unknown="ignore" if ignore_unknown else "refuse",
                model=model,
            )
        ),
    )
    if as_json:
        print_json(reply)
        return
    if reply.source == "popularity":
        tell("nothing of this history is known: the most popular items")
    if reply.ignored_items:
        tell(f"not in the catalogue, left out: {', '.join(reply.ignored_items)}")
    rows = [(place, item.score, item.item_id, item.title, ", ".join(item.reasons)) for place, item in enumerate(reply.items, 1)]
    print_table(("#", "score", "item", "title", "because"), rows)


def read_steer(text: str) -> Steer:
    """Read a wish such as `hiking` or `hiking=-1`; an `=` without a number behind it belongs to the words."""
    words, separator, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        separator = ""
    return Steer(text=words, weight=weight) if separator else Steer(text=text)


def read_boost(text: str) -> ItemBoost:
    """Read a boost such as `category:Lamps=2`.

    Raises:
        ValueError: there is no condition, or no weight behind it.
    """
    where, _, number = text.rpartition("=")
    kind, separator, name = where.partition(":")
    fields = {"item": "item_ids", "category": "categories", "brand": "brands"}
    if not separator or kind not in fields:
        raise ValueError(
            f"--boost {text!r}: expected item:ID=WEIGHT, category:NAME=WEIGHT or brand:NAME=WEIGHT, as category:Lamps=2"
        )
    return ItemBoost.model_validate({"where": {fields[kind]: [name]}, "weight": number})


models = typer.Typer(help="List the loaded versions, or change the default one.", no_args_is_help=True, rich_markup_mode=None)


@models.command("list")
def list_models(*, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the loaded versions; the default one is marked by a star."""
    _print_versions(ask_endpoint(url, Client.models), as_json)


@models.command("promote")
def promote_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A loaded version.")],
    *,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Make a loaded version the default. Needs an admin key."""
    _print_versions(ask_endpoint(url, lambda client: client.promote(name)), as_json)


@models.command("roll-back")
def roll_back_models(*, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Return to the default version before the last promotion. Needs an admin key."""
    _print_versions(ask_endpoint(url, Client.roll_back), as_json)


def _print_versions(versions: Versions, as_json: bool) -> None:
    if as_json:
        print_json(versions)
        return
    for name, why in versions.failed.items():
        tell(f"{name} could not be loaded: {why}")
    rows = [
        ("*" if each.default else "", each.id, each.policy, each.policy_digest, each.ranker, each.num_items)
        for each in versions.data
    ]
    print_table(("", "model", "policy", "digest", "ranker", "items"), rows)


def load(
    *,
    rate: Annotated[float, typer.Option(help="Requests per second.")],
    seconds: Annotated[float, typer.Option(help="How long requests are sent.")] = 10.0,
    bodies: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="Request bodies, one JSON object a line; popular items if not given.",
        ),
    ] = None,
    history_length: Annotated[int, typer.Option(min=1, help="Longest history of the requests.")] = 5,
    k: Annotated[int, typer.Option(min=1, max=MAX_K, help="Items wanted.")] = 10,
    timeout: Annotated[float, typer.Option(help="Seconds until a request counts as failed.")] = 30.0,
    retries: Annotated[int, typer.Option(min=0, help="Further tries after 429, 502, 503, 504 or a lost connection.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the times and the histories.")] = 0,
    model: Model = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Send requests at random times that do not wait for answers; fails if any request does."""
    import numpy as np

    from serve.asking.load import Load, random_bodies, send_load

    rng = np.random.default_rng(seed)

    def send(client: Client) -> Load:
        if bodies is not None:
            lines = [line for line in bodies.read_bytes().splitlines() if line.strip()]
        else:
            ids = [item.item_id for item in client.find_items(limit=MAX_SEARCH, model=model)]
            lines = random_bodies(ids, history_length, k, model, rng)
        return Load(f"{client.url}/v1/recommend", lines, rate, seconds, timeout, client.headers, retries)

    planned = ask_endpoint(url, send)
    summary = ask_endpoint(url, lambda _: asyncio.run(send_load(planned, rng, _tell_second)))
    if as_json:
        typer.echo(summary.json())
    else:
        print_table(("what", "value"), _rows_of(summary))
    if summary.failures:
        raise typer.Exit(1)


def _tell_second(now: "Second") -> None:
    times = "" if math.isnan(now.p50_seconds) else f"  p50 {now.p50_seconds * 1000:.0f} ms  p99 {now.p99_seconds * 1000:.0f} ms"
    tell(f"{now.second:4d} s  sent {now.sent}  ok {now.ok}  failed {now.failed}  in flight {now.in_flight}{times}")


def _rows_of(summary: "Summary") -> list[tuple[str, object]]:
    """Return the rows of a load's table: its counts, what failed by its kind, and the latencies."""
    return [
        ("requests sent", summary.sent),
        ("answered", summary.ok),
        *((f"failed: {kind}", number) for kind, number in summary.failures.items()),
        *((f"tried again: {kind}", number) for kind, number in summary.retried.items()),
        ("answers per second", summary.ok_rate),
        *((f"latency {name}, seconds", value) for name, value in (summary.latency_seconds or {}).items()),
        ("sent late p99, seconds", summary.late_p99_seconds),
        ("in flight at most", summary.max_in_flight),
    ]


def add_commands(app: typer.Typer) -> None:
    """Put the commands that ask an endpoint into a command line."""
    app.command("ask", rich_help_panel=PANEL)(ask)
    app.add_typer(item_commands.items, name="items", rich_help_panel=PANEL)
    app.add_typer(models, name="models", rich_help_panel=PANEL)
    app.command("load", rich_help_panel=PANEL)(load)


# plain help and errors: what was typed is never read as markup; no error shows values of variables, among which are keys
app: typer.Typer = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)
add_commands(app)
