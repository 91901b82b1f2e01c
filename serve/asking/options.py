"""What the commands that ask an endpoint share: their options, and what they say where no good answer comes."""

import os
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError

from serve.asking.terminal import tell
from serve.client import Client, EndpointError

Answer = TypeVar("Answer")
Url = Annotated[str, typer.Option("--url", envvar="DIGR_URL", help="Address of the endpoint.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole reply as one line of JSON.")]
Model = Annotated[str | None, typer.Option("--model", metavar="NAME", help="Version to ask; the default one if not given.")]


def ask_endpoint(url: str, question: Callable[[Client], Answer], timeout_seconds: float = 30.0) -> Answer:
    """Return what the endpoint answers; where it does not, say why on stderr and end with the exit code for it."""
    try:
        with Client(url, os.environ.get("DIGR_API_KEY", ""), timeout_seconds) as client:
            return question(client)
    except EndpointError as error:
        items = error.problem.unknown_items if error.problem else None
        named = f": {', '.join(items)}" if items else ""
        tell(f"error: {error}{named}")
        raise typer.Exit(2 if error.status is not None and error.status < 500 else 1) from None
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"])) or error.title
        tell(f"error: {where}: {wrong['msg']}, found {wrong['input']!r}")
        raise typer.Exit(2) from None
    except (ConnectionError, ValueError) as error:
        tell(f"error: {error}")
        raise typer.Exit(2) from None
