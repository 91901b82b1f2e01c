"""What an endpoint answered, on a terminal: tables that no title or name can break."""

import json
import unicodedata
from collections.abc import Iterable, Sequence

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from serve.contract.schemas import Contract

UNCUT = 100_000
"""Width of a table that goes into a file or another program, characters: no cell of it is cut or broken."""
JOINERS = "\u200c\u200d"
"""Zero-width characters that words of some languages and emoji are written with."""


def plain(text: str) -> str:
    """Write what would steer a terminal, or turn the direction of its text, as an escape in ASCII; breaks become blanks."""
    return "".join(map(_plain_character, text))


def _plain_character(character: str) -> str:
    if character.isspace():
        return " "
    steers = unicodedata.category(character).startswith("C") and character not in JOINERS
    return character.encode("unicode_escape", "surrogatepass").decode() if steers else character


def tell(text: str) -> None:
    """Print one line on stderr."""
    typer.echo(plain(text), err=True)


def print_json(reply: Contract) -> None:
    """Print a reply on stdout as one line of JSON; it is ASCII, so nothing in it steers a terminal."""
    typer.echo(json.dumps(reply.model_dump(mode="json")))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on stdout; numbers stand right, and None is written as `-`.

    Nothing of a cell is taken for markup. The last two columns are broken over lines where a terminal is too narrow.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(columns):
        table.add_column(Text(name), no_wrap=place < len(columns) - 2, overflow="fold")
    for row in cells:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=UNCUT)
    console.print(table)


def _cell(value: object) -> Text:
    if value is None:
        return Text("-", justify="right")
    if isinstance(value, float):
        return Text(f"{value:.3f}", justify="right")
    if isinstance(value, int):
        return Text(str(value), justify="right")
    return Text(plain(str(value)))
