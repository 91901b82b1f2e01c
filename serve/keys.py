"""API keys: salted hashes in a file, roles, and a rate limit for each key.

`digr keys NAME --role admin`, or `python -m serve.keys NAME --role admin`, makes a key: it prints the key once, and what to put
into the file.
"""

import hashlib
import hmac
import json
import secrets
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import Field, ValidationError

from serve.contract.schemas import Contract

Role = Literal["read", "admin"]


class KeyRecord(Contract):
    """What is kept of a key; the key itself is 32 random bytes, so one round of hashing is enough."""

    name: str = Field(min_length=1, max_length=64)
    role: Role
    salt: str = Field(pattern=r"^[0-9a-f]{32}$")
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of salt and key."""
    requests_per_second: float = Field(50.0, gt=0)
    """Rate limit over all replicas; a request for several lists counts as many."""
    burst: int = Field(100, ge=1)
    """Requests at once before the rate limit counts."""


class KeyFile(Contract):
    """A TOML file of `[[keys]]`."""

    keys: list[KeyRecord] = Field(min_length=1)


def read_keys(path: Path) -> list[KeyRecord]:
    """Read the records of a key file.

    Raises:
        ValueError: it is missing or not one.
    """
    return parse_keys(path, path.read_bytes() if path.exists() else None)


def parse_keys(path: Path, content: bytes | None) -> list[KeyRecord]:
    """Return the records in a key file's content; None stands for a file that is not there.

    Raises:
        ValueError: it is missing or not one.
    """
    if content is None:
        raise ValueError(f"keys_file = {str(path)!r}: no such file; make keys with `digr keys NAME`")
    try:
        return KeyFile.model_validate(tomllib.loads(content.decode())).keys
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"keys_file = {str(path)!r}: not valid TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"keys_file = {str(path)!r}: {where}: {first['msg']}") from None


def make_key(name: str, role: Role) -> tuple[str, KeyRecord]:
    """Make a random key and what is kept of it."""
    key, salt = f"digr_{secrets.token_urlsafe(32)}", secrets.token_hex(16)
    return key, KeyRecord(name=name, role=role, salt=salt, hash=_hash(salt, key))


def written(record: KeyRecord) -> str:
    """Return a record as it stands in a key file."""
    return "[[keys]]\n" + "".join(f"{field} = {json.dumps(value)}\n" for field, value in record)


def find_key(records: Sequence[KeyRecord], key: str) -> KeyRecord | None:
    """Return the record of a key; takes as long whichever it is, and whether there is one or not."""
    found = None
    for record in records:
        if hmac.compare_digest(_hash(record.salt, key), record.hash):
            found = record
    return found


def _hash(salt: str, key: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + key.encode("utf-8", "surrogateescape")).hexdigest()


class TokenBucket:
    """Lets `burst` requests through at once, and `rate` per second in the long run."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens, self._at = float(burst), clock()

    def change(self, rate: float, burst: float) -> None:
        """Let through as many from now on; a half full bucket stays half full."""
        self._fill()
        self._tokens *= burst / self._burst
        self._rate, self._burst = rate, burst

    def take(self, count: int = 1, taken: int = 0) -> float:
        """Take tokens, all or none; return 0, or the seconds until there are enough.

        More than the burst are let through by a full bucket, which then has to fill from below zero.

        Args:
            count: tokens to take.
            taken: how many the same request has taken before.
        """
        self._fill()
        if (lacking := min(float(count), self._burst - taken) - self._tokens) > 0:
            return lacking / self._rate
        self._tokens -= count
        return 0.0

    def _fill(self) -> None:
        now = self._clock()
        self._tokens, self._at = min(self._burst, self._tokens + (now - self._at) * self._rate), now


def print_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.")],
    role: Annotated[Role, typer.Option(help="What it may do: ask, or change things too.")] = "read",
) -> None:
    """Make an API key: stderr shows it this once, stdout has what to put into the key file."""
    try:
        key, record = make_key(name, role)
    except ValidationError as error:
        raise typer.BadParameter(f"{error.errors()[0]['msg']}, found {name!r}", param_hint="NAME") from None
    typer.echo(f"key, shown only now: {key}", err=True)
    typer.echo(written(record))


if __name__ == "__main__":
    # no error may show values of variables: one of them is the key
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(print_key)
    app()
