"""Files and folders on a local disk and on `s3://bucket/prefix`: addresses, digests, and the Parquet parts of a table."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

SCHEMES = ("s3", "file")
"""Known schemes of addresses, besides plain paths."""


def filesystem_of(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a local path or an s3:// address, and the path on it.

    Raises:
        ValueError: the scheme is unknown; Arrow would search for cloud credentials for minutes.
    """
    scheme, separator, _ = uri.partition("://")
    if separator:
        if scheme not in SCHEMES:
            known = ", ".join(f"{known}://" for known in SCHEMES)
            raise ValueError(f"{uri}: {scheme}:// is not known; expected a local path or one of {known}")
        return pafs.FileSystem.from_uri(uri)
    return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())


def is_remote(uri: str) -> bool:
    """Whether an address is not on a local disk."""
    return not isinstance(filesystem_of(uri)[0], pafs.LocalFileSystem)


def sync_to_disk(path: Path) -> None:
    """Have the disk keep what a folder names, or what a complete file holds, before this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest_of(value: Any) -> str:
    """Return the digest of a JSON value, independent of key order; 16 hex digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of_files(uri: str) -> str:
    """Return the digest of a file's bytes, or of names and bytes of all files below a folder.

    Raises:
        ValueError: the file or folder does not exist.
    """
    fs, path = filesystem_of(uri)
    info = fs.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise ValueError(f"{uri}: no such file or folder")
    infos = [info] if info.is_file else fs.get_file_info(pafs.FileSelector(path, recursive=True))
    hasher = hashlib.sha256()
    for entry in sorted((entry for entry in infos if entry.is_file), key=lambda entry: entry.path):
        hasher.update(entry.path[len(path) :].encode() + b"\0")
        with fs.open_input_stream(entry.path) as stream:
            while chunk := stream.read(1 << 22):
                hasher.update(chunk)
    return hasher.hexdigest()[:16]


def open_parts(uri: str, schema: pa.Schema | None = None) -> pads.Dataset:
    """Open all Parquet files below an address, in the order of their names; without files the table is empty."""
    parts = list_parts(uri)
    if not parts:
        return pads.dataset((schema or pa.schema([])).empty_table())
    return pads.dataset(parts, filesystem=filesystem_of(uri)[0], format="parquet", schema=schema)


def common_schema(uri: str) -> pa.Schema:
    """Return the common schema of another program's Parquet files; a column may be all null in some of them.

    Reads every file's footer; parts that this program wrote do not need it.

    Raises:
        ValueError: two files have a column with incompatible types.
    """
    fs, parts = filesystem_of(uri)[0], list_parts(uri)
    if not parts:
        return pa.schema([])
    try:
        return pa.unify_schemas([pq.read_schema(part, filesystem=fs) for part in parts], promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise ValueError(f"{uri}: its {len(parts)} Parquet files have different columns: {error}") from error


def list_parts(uri: str) -> list[str]:
    """Return the sorted paths of all Parquet files below an address; the address itself if it is a file.

    Files and folders whose names begin with `_` or `.` are left out: drafts, and the bookkeeping files of Spark and others.
    """
    fs, path = filesystem_of(uri)
    if fs.get_file_info(path).is_file:
        return [path]
    entries = fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    parts = [entry.path for entry in entries if entry.is_file and entry.path.endswith(".parquet")]
    return sorted(part for part in parts if not any(name.startswith(("_", ".")) for name in part[len(path) + 1 :].split("/")))


def part_name(number: int) -> str:
    """Return the file name of a part; names sort by number."""
    return f"part-{number:05d}.parquet"


@contextmanager
def open_part(uri: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Open a Parquet file for writing; it appears, or replaces an earlier one, only when the block ends."""
    fs, path = filesystem_of(uri)
    fs.create_dir(str(Path(path).parent), recursive=True)
    draft = f"{Path(path).parent}/.draft-{uuid.uuid4().hex}" if isinstance(fs, pafs.LocalFileSystem) else path
    try:
        with pq.ParquetWriter(draft, schema, filesystem=fs) as writer:
            yield writer
        if draft != path:
            Path(draft).replace(path)
    finally:
        if draft != path:
            Path(draft).unlink(missing_ok=True)


def remove(uri: str) -> None:
    """Remove a folder if it exists."""
    fs, path = filesystem_of(uri)
    if isinstance(fs, pafs.LocalFileSystem):
        if Path(path).exists():
            shutil.rmtree(path)
    elif fs.get_file_info(path).type != pafs.FileType.NotFound:
        fs.delete_dir(path)
