"""The files that replicas share: a folder on a disk that all see, or a prefix of a bucket on S3.

A file that is created never replaces another one, and is durable when `create` returns.
"""

import functools
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from digr.files import sync_to_disk
from digr.s3 import s3_client

MAX_FILE_BYTES = 32_000_000
"""A larger file is not read whole: what is read of it is longer than this, so that the caller can refuse it."""
_S3_THREADS = 16
TRIES = 4
"""Tries of each request to S3."""


class StateFile(NamedTuple):
    """A file of the state, as a listing names it."""

    name: str
    """Its name in the state, such as `metrics/one.prom`."""
    age_seconds: float
    """Time since it was written last."""


class StateStore(Protocol):
    """Files by name; every method raises `OSError` where the disk or the bucket cannot be reached."""

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, at most `MAX_FILE_BYTES` + 1; None if there is none."""

    def read_many(self, names: Sequence[str]) -> list[bytes | IsADirectoryError | None]:
        """Read several files; for a folder of that name, return the error that says so."""

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless one of this name exists; return whether it was written. It is durable then."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file, or replace it; readers see the old bytes or the new ones. It may be lost if the machine fails."""

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

    def list_files(self, folder: str) -> list[StateFile]:
        """Return the files of a folder by name; a folder that does not exist has none."""


def state_address(address: str) -> str:
    """Return the address of a state in full: an absolute path, or `s3://bucket/prefix`.

    Raises:
        ValueError: its scheme is not supported, or it names no bucket.
    """
    parts = urlsplit(address)
    if "://" not in address:
        return str(Path(address).expanduser().absolute())
    if parts.scheme == "file" and not parts.netloc:
        return unquote(parts.path)
    if parts.scheme == "s3" and parts.netloc:
        return address.rstrip("/")
    raise ValueError(f"state_dir = {address!r}: expected a folder on a disk that all replicas see, or s3://bucket/prefix")


def open_state(address: str) -> StateStore:
    """Return the state at an address, see `state_address`."""
    address = state_address(address)
    if not address.startswith("s3://"):
        return LocalState(Path(address))
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    return S3State(bucket, f"{prefix}/" if prefix else "")


class LocalState(NamedTuple):
    """The files below a folder."""

    root: Path

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes; None if there is none."""
        try:
            with (self.root / name).open("rb") as file:
                return file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return None

    def read_many(self, names: Sequence[str]) -> list[bytes | IsADirectoryError | None]:
        """Read several files."""
        return [_or_folder(self, name) for name in names]

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it exists: complete and on the disk before its name appears, and the name is on the disk too."""
        path = self.root / name
        _make_folder(path.parent)
        draft = path.parent / f".{uuid.uuid4().hex}"
        try:
            with draft.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)  # fails if the file exists, unlike a rename
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        sync_to_disk(path.parent)
        return True

    def write(self, name: str, content: bytes) -> None:
        """Write a file, or replace it."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.parent / f".{uuid.uuid4().hex}"
        try:
            draft.write_bytes(content)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        (self.root / name).unlink(missing_ok=True)

    def list_files(self, folder: str) -> list[StateFile]:
        """Return the files of a folder by name, without drafts."""
        found = list[StateFile]()
        with suppress(FileNotFoundError), os.scandir(self.root / folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # removed meanwhile
                    if not entry.name.startswith(".") and entry.is_file():
                        found.append(StateFile(f"{folder}/{entry.name}", time.time() - entry.stat().st_mtime))
        return sorted(found)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably."""
    missing = [each for each in (folder, *folder.parents) if not each.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_to_disk(each.parent)


def _or_folder(state: StateStore, name: str) -> bytes | IsADirectoryError | None:
    try:
        return state.read(name)
    except IsADirectoryError as error:
        return error


@functools.cache
def _s3_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_S3_THREADS, thread_name_prefix="state")


class S3State(NamedTuple):
    """The objects of a bucket below a prefix; `create` is S3's conditional put."""

    bucket: str
    prefix: str
    """Empty, or ends with a slash."""

    def _address(self, name: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{name}"

    def read(self, name: str) -> bytes | None:
        """Return an object's bytes; None if there is none."""
        with _as_os_error(self._address(name), "NoSuchKey") as found:
            body = s3_client(TRIES).get_object(Bucket=self.bucket, Key=self.prefix + name)["Body"]
            with body:
                found.append(body.read(MAX_FILE_BYTES + 1))
        return found[0] if found else None

    def read_many(self, names: Sequence[str]) -> list[bytes | IsADirectoryError | None]:
        """Read several objects at the same time."""
        return [self.read(names[0])] if len(names) == 1 else list(_s3_threads().map(self.read, names))

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless one of this name exists.

        Of two writers at once one may be told to try again (409); it does so and then finds the other's object.
        """
        put = functools.partial(s3_client(TRIES).put_object, Bucket=self.bucket, Key=self.prefix + name, Body=content)
        for _ in range(5):
            with _as_os_error(self._address(name), "PreconditionFailed", "ConditionalRequestConflict") as found:
                found.append(put(IfNoneMatch="*"))
            if found:
                return True
            if self.read(name) is not None:
                return False
        raise OSError(f"{self._address(name)}: neither written nor there after 5 tries; try again later")

    def write(self, name: str, content: bytes) -> None:
        """Write an object, or replace it."""
        with _as_os_error(self._address(name)):
            s3_client(TRIES).put_object(Bucket=self.bucket, Key=self.prefix + name, Body=content)

    def remove(self, name: str) -> None:
        """Remove an object if it exists."""
        with _as_os_error(self._address(name)):
            s3_client(TRIES).delete_object(Bucket=self.bucket, Key=self.prefix + name)

    def list_files(self, folder: str) -> list[StateFile]:
        """Return the objects directly below a prefix by name."""
        found, now = list[StateFile](), time.time()
        with _as_os_error(self._address(folder)):
            pages = (
                s3_client(TRIES)
                .get_paginator("list_objects_v2")
                .paginate(Bucket=self.bucket, Prefix=f"{self.prefix}{folder}/", Delimiter="/")
            )
            for page in pages:
                for each in page.get("Contents", []):
                    name = each["Key"].removeprefix(self.prefix)
                    found.append(StateFile(name, now - each["LastModified"].timestamp()))
        return sorted(found)


@contextmanager
def _as_os_error(address: str, *missing: str) -> Iterator[list[Any]]:
    """Give a list for the result; leave it empty at S3's errors `missing`, and raise all others as `OSError`."""
    from botocore.exceptions import BotoCoreError, ClientError

    found = list[Any]()
    try:
        yield found
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") not in missing:
            raise OSError(f"{address}: {error}") from error
    except BotoCoreError as error:
        raise OSError(f"{address}: {error}") from error
