"""Commands for the catalogue of a running endpoint: `digr items`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from serve.asking.options import AsJson, Model, Url, ask_endpoint
from serve.asking.terminal import print_json, print_table, tell
from serve.client import DEFAULT_URL
from serve.contract.item_schemas import MAX_SEARCH, FoundItems, Item, ItemChange, NewItem
from serve.contract.similar_schemas import MAX_SIMILAR, SimilarRequest

CHUNK, CHUNK_BYTES = 250, 900_000
"""Lines and bytes that `import` sends at once; the bytes are below the default of `max_body_bytes`."""
IMPORT_SECONDS = 120.0
"""Longest wait for the answer to a chunk, whose new items are encoded meanwhile."""

items = typer.Typer(
    help="Search, show, compare, add, change or remove items of the catalogue.", no_args_is_help=True, rich_markup_mode=None
)


@items.command("search")
def search_items(
    words: Annotated[list[str] | None, typer.Argument(metavar="WORD", help="Beginnings of words.")] = None,
    *,
    limit: Annotated[int, typer.Option(min=1, max=MAX_SEARCH, help="Items listed at most.")] = 10,
    model: Model = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List items by words of their titles or interests; the most popular ones without any."""
    found = ask_endpoint(url, lambda client: client.find_items(" ".join(words or []), limit, model))
    if as_json:
        print_json(FoundItems(items=found))
    else:
        print_table(("item", "title", "interest"), [(item.item_id, item.title, item.interest) for item in found])


@items.command("show")
def show_item(
    item: Annotated[str, typer.Argument(metavar="ITEM", help="Its id; one with - in front needs -- before it.")],
    *,
    model: Model = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Print everything that is known about an item."""
    found = ask_endpoint(url, lambda client: client.item(item, model))
    if as_json:
        print_json(found)
        return
    _print_item(found)


def _print_item(item: Item) -> None:
    shown = {name: value for name, value in item if value not in (None, [])}
    shown |= {name: ", ".join(map(str, value)) for name, value in shown.items() if isinstance(value, list)}
    print_table(("field", "value"), [(name, str(value)) for name, value in shown.items()])


@items.command("similar")
def similar_items(
    item: Annotated[str, typer.Argument(metavar="ITEM", help="Its id; one with - in front needs -- before it.")],
    *,
    k: Annotated[int, typer.Option(min=1, max=MAX_SIMILAR, help="Items wanted.")] = 10,
    source: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only neighbours by this source, such as text; may be repeated.")
    ] = None,
    model: Model = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Print an item's neighbours, with the weight of each source that lists them, and the interests that they share."""
    request = {"item_id": item, "k": k, "sources": source or None, "model": model}
    reply = ask_endpoint(url, lambda client: client.answer_similar(SimilarRequest.model_validate(request)))
    if as_json:
        print_json(reply)
        return
    told = [", ".join(f"{name} {weight:.2f}" for name, weight in each.weights.items()) for each in reply.items]
    rows = zip(reply.items, told, strict=True)
    print_table(
        ("#", "item", "title", "sources", "both"),
        [(at, each.item_id, each.title, by, ", ".join(each.reasons)) for at, (each, by) in enumerate(rows, 1)],
    )


@items.command("add")
def add_item(
    item: Annotated[str, typer.Argument(metavar="ITEM", help="Its id; one with - in front needs -- before it.")],
    *,
    title: Annotated[str, typer.Option(metavar="TEXT", help="Its title.")],
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="Its description.")] = None,
    brand: Annotated[str | None, typer.Option(metavar="NAME", help="Its brand.")] = None,
    category: Annotated[list[str] | None, typer.Option(metavar="NAME", help="One of its categories; may be repeated.")] = None,
    price: Annotated[float | None, typer.Option(metavar="NUMBER", help="Its price.")] = None,
    currency: Annotated[
        str | None, typer.Option(metavar="CODE", help="ISO 4217 code of the price's currency, such as EUR.")
    ] = None,
    image: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Its image, https:// or data:.")] = None,
    interest: Annotated[
        list[str] | None, typer.Option(metavar="PHRASE", help="A trusted interest, strongest first; may be repeated.")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Add an item to the catalogue; print its semantic ID in each version. Needs an admin key."""
    added = ask_endpoint(
        url,
        lambda client: client.add_item(
            NewItem(
                item_id=item,
                title=title,
                description=description,
                brand=brand,
                categories=category or [],
                price=price,
                currency=currency,
                image_uri=image,
                interests=interest or [],
            )
        ),
    )
    if as_json:
        print_json(added)
    else:
        print_table(("model", "semantic ID"), [(name, " ".join(map(str, sid))) for name, sid in added.sids.items()])


@items.command("change")
def change_item(
    item: Annotated[str, typer.Argument(metavar="ITEM", help="Its id; one with - in front needs -- before it.")],
    *,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="A new title.")] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="A new description.")] = None,
    brand: Annotated[str | None, typer.Option(metavar="NAME", help="A new brand.")] = None,
    category: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A category in place of the old ones; may be repeated.")
    ] = None,
    price: Annotated[float | None, typer.Option(metavar="NUMBER", help="A new price.")] = None,
    currency: Annotated[str | None, typer.Option(metavar="CODE", help="The currency of its price, such as EUR.")] = None,
    image: Annotated[str | None, typer.Option(metavar="ADDRESS", help="A new image, https:// or data:.")] = None,
    available: Annotated[bool | None, typer.Option("--available/--unavailable", help="Whether it may be listed.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Change facts of an item; it keeps its semantic ID. Needs an admin key."""
    given = {"title": title, "description": description, "brand": brand, "categories": category, "price": price}
    given |= {"currency": currency, "image_uri": image, "available": available}
    facts = {name: value for name, value in given.items() if value not in (None, [])}
    if not facts:
        raise typer.BadParameter("give at least one option that says what changes, such as --price 9.5")
    changed = ask_endpoint(url, lambda client: client.change_item(item, ItemChange.model_validate(facts)))
    if as_json:
        print_json(changed)
    else:
        _print_item(changed)


@items.command("remove")
def remove_item(
    item: Annotated[str, typer.Argument(metavar="ITEM", help="Its id; one with - in front needs -- before it.")],
    *,
    url: Url = DEFAULT_URL,
) -> None:
    """Take an item out of all lists; `digr items add` brings it back. Needs an admin key."""
    ask_endpoint(url, lambda client: client.delete_item(item))
    print_table(("item", "status"), [(item, "in no list any more")])


@items.command("import")
def import_items(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, one item each.")],
    *,
    url: Url = DEFAULT_URL,
) -> None:
    """Add, change or delete an item per JSON line; say which lines fail, and why. Needs an admin key."""
    if not file.is_file():
        raise typer.BadParameter(f"{file}: no such file", param_hint="FILE")
    counts, before = dict[str, int](), 0
    for number, lines in _chunks(file):
        results = ask_endpoint(url, lambda client, lines=lines: client.send_lines(b"".join(lines)), IMPORT_SECONDS)  # type: ignore[misc]
        for result in results:
            counts[result.status] = counts.get(result.status, 0) + 1
            if result.problem is not None:
                named = f" {result.item_id}" if result.item_id else ""
                tell(f"line {before + result.line}{named}: {result.problem.title}: {result.problem.detail}")
        before = number
    print_table(("lines", "number"), sorted(counts.items()))
    if counts.get("failed"):
        raise typer.Exit(2)


def _chunks(file: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Return the lines of a file in chunks that a request may have, each with the number of its last line."""
    chunk, size = list[bytes](), 0
    number = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            whole = line.rstrip(b"\r\n") + b"\n"
            if chunk and (len(chunk) == CHUNK or size + len(whole) > CHUNK_BYTES):
                yield number - 1, chunk
                chunk, size = [], 0
            chunk.append(whole)
            size += len(whole)
    if chunk:
        yield number, chunk
