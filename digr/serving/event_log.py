"""Write a log of a store, and follow what other replicas write into it.

On a disk a replica appends to one segment an hour and holds a lock on it while it is open, so that nobody takes it for closed,
however long the replica sleeps. On S3, where nothing can be appended to, each append is an object of its own.
"""

import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from digr.data.event_store import Log, Segment, hour_of, list_segments, read_lines, whole_lines
from digr.files import filesystem_of, sync_to_disk

Clock = Callable[[], float]
"""Returns the Unix time, seconds."""
MINUTE = 60
MOST_FOLDERS = 60
"""After a longer pause all folders are listed, which is one list too."""


class SegmentWriter:
    """Appends to a log; one thread at a time may use it."""

    def __init__(self, log: Log, clock: Clock) -> None:
        self.name = uuid.uuid4().hex
        """Begins the names of its segments."""
        self._clock, self._number = clock, 0
        self._fs, self._path = filesystem_of(log.segments)
        self._file: int | None = None
        self._folder = ""

    def append(self, lines: bytes) -> None:
        """Append whole lines; they are durable when this returns.

        Raises:
            OSError: they may be durable or not; the next lines go into another segment.
        """
        if not isinstance(self._fs, pafs.LocalFileSystem):
            self._put(lines)
            return
        self.close_past()
        if self._file is None:
            self._open()
        assert self._file is not None
        try:
            left = memoryview(lines)
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError:
            self.close()  # the segment may end in half a line, so nothing may follow
            raise

    def close_past(self) -> None:
        """Close the segment if its hour is over, which lets it become part of a Parquet file."""
        if self._folder != hour_of(self._clock()):
            self.close()

    def close(self) -> None:
        """Close the segment."""
        if self._file is not None:
            os.close(self._file)  # the lock ends with it
            self._file = None

    def _put(self, lines: bytes) -> None:
        self._number += 1
        path = f"{self._path}/{minute_of(self._clock())}/{self.name}-{self._number:06d}.jsonl"
        with self._fs.open_output_stream(path) as stream:
            stream.write(lines)

    def _open(self) -> None:
        self._folder = hour_of(self._clock())
        folder = Path(self._path) / self._folder
        folder.mkdir(parents=True, exist_ok=True)
        while self._file is None:
            self._number += 1
            path = folder / f"{self.name}-{self._number:06d}.jsonl"
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists():
                self._file = file
            else:  # it was taken for closed before it was locked
                os.close(file)
        sync_folders(folder)


def sync_folders(folder: Path) -> None:
    """Make the names of new files in a folder of a log durable, and those of the folders around it up to the store's."""
    for each in (folder, *list(folder.parents)[:3]):
        sync_to_disk(each)


def minute_of(seconds: float) -> str:
    """Return the folder of S3's segments of a Unix time; so few are listed at a time."""
    return f"{hour_of(seconds)}-{int(seconds) // MINUTE % MINUTE:02d}"


class SegmentFollower:
    """Reads what was appended to a log since the last time, by anybody else."""

    def __init__(self, log: Log, clock: Clock, but: str) -> None:
        self._log, self._clock, self._but = log, clock, but
        self._fs, _ = filesystem_of(log.uri)
        self._is_local = isinstance(self._fs, pafs.LocalFileSystem)
        self._offsets: dict[str, int] = {}
        """Of segments that may still grow or be listed again."""
        self._read_at: float | None = None
        """When all that stood there was read."""

    def read(self) -> Iterator[pa.Table]:
        """Return new rows: the first time those of all segments, later of folders that may have changed since.

        Other replicas' clocks may differ by up to an hour, on S3 by up to a minute.
        """
        now = self._clock()
        listed = list_segments(self._log, self._changed(now))
        new = [segment for segment in listed if segment.size > self._offsets.get(segment.name, 0)]
        for segment in new:
            if not segment.name.partition("/")[2].startswith(self._but):
                yield from self._read(segment)
        self._offsets = {segment.name: self._offsets.get(segment.name, segment.size) for segment in listed}
        self._read_at = now

    def _changed(self, now: float) -> list[str] | None:
        """Return the folders that may have changed; None for any."""
        name, step = (hour_of, MINUTE * MINUTE) if self._is_local else (minute_of, MINUTE)
        if self._read_at is None or not 0 <= now - self._read_at < MOST_FOLDERS * step:
            return None
        first, last = int(self._read_at) // step - 1, int(now) // step + 1
        return [name(float(number * step)) for number in range(first, last + 1)]

    def _read(self, segment: Segment) -> Iterator[pa.Table]:
        begin = self._offsets.setdefault(segment.name, 0)
        try:
            for lines, end in whole_lines(self._fs, segment.path, begin):
                self._offsets[segment.name] = end
                yield read_lines(self._log.schema, lines)[0]
        except FileNotFoundError:  # it became part of a Parquet file
            return
