"""Turn closed segments of past hours into Parquet parts.

A part's metadata name the segments in it, and segments are removed after their part stands. So a crash between leaves segments
that the next time finds named in a part, and only removes. On a disk one process at a time does it. On S3 two may do it at once;
then rows may be in two parts, and readers keep one of each key.
"""

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from digr.data.event_store import Log, Segment, hour_of, list_segments, read_lines, whole_lines
from digr.files import digest_of, filesystem_of, list_parts, open_part, sync_to_disk
from digr.serving.event_log import sync_folders

logger = logging.getLogger(__name__)

SEGMENTS_KEY = b"segments"
DAMAGED = "_damaged"
"""Folder of a log for lines that are no rows."""


def build_parts(log: Log, now: float, remove: Callable[[pafs.FileSystem, str], None] = pafs.FileSystem.delete_file) -> int:
    """Build the parts of all hours before this one; return how many were built.

    Args:
        log: the log.
        now: Unix time, seconds.
        remove: removes a segment.
    """
    with ExitStack() as stack:
        if not stack.enter_context(_only_one(log)):
            return 0
        hours: dict[str, list[Segment]] = {}
        for segment in list_segments(log):
            if segment.folder[:13] < hour_of(now) and stack.enter_context(_closed(log, segment)):
                hours.setdefault(segment.folder[:13], []).append(segment)
        return sum(_build_part(log, hour, segments, remove) for hour, segments in hours.items())


def _build_part(log: Log, hour: str, segments: Sequence[Segment], remove: Callable[[pafs.FileSystem, str], None]) -> bool:
    fs, _ = filesystem_of(log.uri)
    folder = f"{log.parts}/hour={hour}"
    there = {name for part in list_parts(folder) for name in segments_of(fs, part)}
    new = [segment for segment in segments if segment.name not in there]
    if new:
        _remove_drafts(fs, filesystem_of(folder)[1])
        names = [segment.name for segment in new]
        schema = log.schema.with_metadata({SEGMENTS_KEY: json.dumps(names).encode()})
        address = f"{folder}/{digest_of(names)}.parquet"
        with open_part(address, schema) as writer:
            for segment in new:
                for table in _rows(log, fs, segment):
                    writer.write_table(table.cast(schema))
        if isinstance(fs, pafs.LocalFileSystem):
            path = Path(filesystem_of(address)[1])
            sync_to_disk(path)
            sync_folders(path.parent)
    for segment in segments:
        remove(fs, segment.path)
    return bool(new)


def _remove_drafts(fs: pafs.FileSystem, folder: str) -> None:
    """Remove what a crash left."""
    if isinstance(fs, pafs.LocalFileSystem):
        for draft in Path(folder).glob(".draft-*"):
            draft.unlink()


def segments_of(fs: pafs.FileSystem, part: str) -> list[str]:
    """Return the names of the segments that a part replaces."""
    found = json.loads((pq.read_schema(part, filesystem=fs).metadata or {}).get(SEGMENTS_KEY, b"[]"))
    return [str(name) for name in found]


def _rows(log: Log, fs: pafs.FileSystem, segment: Segment) -> Iterator[pa.Table]:
    for number, (lines, _) in enumerate(whole_lines(fs, segment.path)):
        table, bad = read_lines(log.schema, lines)
        if bad:
            address = f"{filesystem_of(log.uri)[1]}/{DAMAGED}/{segment.name.replace('/', '-')}-{number}"
            logger.error("%s: %d lines are no rows; they are kept in %s", segment.path, len(bad), address)
            fs.create_dir(address.rpartition("/")[0], recursive=True)
            with fs.open_output_stream(address) as stream:
                stream.write(b"\n".join(bad) + b"\n")
        yield table


@contextmanager
def _only_one(log: Log) -> Iterator[bool]:
    """Whether no other process of this disk builds parts of the log."""
    fs, path = filesystem_of(log.uri)
    if not isinstance(fs, pafs.LocalFileSystem):
        yield True
        return
    Path(path).mkdir(parents=True, exist_ok=True)
    with _locked(f"{path}/.parts.lock", os.O_RDWR | os.O_CREAT) as is_ours:
        yield is_ours


@contextmanager
def _closed(log: Log, segment: Segment) -> Iterator[bool]:
    """Whether no process has a segment open; until the block ends, none can open it."""
    if not isinstance(filesystem_of(log.uri)[0], pafs.LocalFileSystem):
        yield True
        return
    with _locked(segment.path, os.O_RDWR) as is_ours:
        yield is_ours


@contextmanager
def _locked(path: str, flags: int) -> Iterator[bool]:
    file = os.open(path, flags, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(file)
