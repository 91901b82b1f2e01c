"""Bring the input files onto this disk: list folders, unpack archives, download remote files.

Everything streams. Archives are not trusted: sizes are counted while unpacking, and names of members never become paths.
"""

import bz2
import errno
import gzip
import lzma
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import httpx
import pyarrow as pa
import pyarrow.fs as pafs

from digr.data.event_store import is_store, write_events
from digr.files import filesystem_of

Report = Callable[[str], None]
CHUNK = 1 << 22
SCHEMES = ("http", "https", "s3")
S3_HINT = "; check the address and AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL"
MAX_MEMBERS = 100_000
"""Most files of one archive."""
MAX_RATIO, FREE_BYTES = 200, 1 << 30
"""An archive may unpack to MAX_RATIO times its size, and always to this many bytes."""
REPORT_SECONDS = 5.0


def _open_zstd(path: Path) -> Any:
    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


PACKED: Mapping[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _open_zstd,
}
"""Endings of packed files -> how to read what is in them."""
TARS = {".tar": ""} | {f".tar{ending}": ending for ending in PACKED}
TARS |= {".tgz": ".gz", ".tbz2": ".bz2", ".txz": ".xz", ".tzst": ".zst"}
"""Endings of tar archives -> the ending that says how they are packed."""
BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, NotImplementedError,
)  # fmt: skip
"""What is raised while a broken archive is read."""


class Given(NamedTuple):
    """A file on this disk, and its name and address at its origin."""

    name: str
    """Path inside the given folder or archive, or the file's name; formats are recognised by it."""
    address: str
    """The file's name in messages."""
    path: Path
    base: str
    """Folder or address to which the file's image paths are relative."""


class _Scratch:
    """Hands out names for new files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        folder.mkdir(parents=True, exist_ok=True)

    def new(self, ending: str) -> Path:
        self.count += 1
        return self.folder / f"{self.count:06d}{ending}"


def bring(addresses: Iterable[str], scratch: Path, report: Report) -> list[Given]:
    """Return all files behind local paths, folders, archives, http(s):// and s3:// addresses, in the order of their names.

    Args:
        addresses: the user's inputs.
        scratch: folder for downloaded and unpacked files; the caller removes it.
        report: called with each line of progress.

    Raises:
        ValueError: an address does not exist or has an unknown scheme, or a file is broken.
    """
    room = _Scratch(scratch)
    found: list[Given] = []
    origins: dict[Path, str] = {}
    for address in addresses:
        for given in _locate(address, room, report):
            path = given.path.resolve()
            if path in origins:
                report(f"{given.address}: the same file as {origins[path]}, read once")
                continue
            origins[path] = given.address
            found += _unpacked(given, room, report)
    return found


def _locate(address: str, room: _Scratch, report: Report) -> Iterator[Given]:
    scheme, separator, rest = address.partition("://")
    scheme = scheme.lower()
    if separator and scheme not in SCHEMES:
        raise ValueError(
            f"{address}: {scheme}:// cannot be read here; expected a local path, http(s):// or s3://, so copy it first"
        )
    if separator and not rest.partition("/")[0]:
        raise ValueError(f"{address}: names no {'bucket' if scheme == 's3' else 'host'}")
    if separator and scheme != "s3":
        yield _from_web(address, room, report)
        return
    try:
        if is_store(address):
            target = room.new(".parquet")
            report(f"{address}: {write_events(address, target):,} events")
            yield Given("events.parquet", address, target, address)
        elif separator:
            yield from _from_s3(address, room, report)
        else:
            yield from _local(address)
    except OSError as error:
        raise ValueError(f"{address}: cannot be read: {error}{S3_HINT if separator else ''}") from error


def _local(address: str) -> Iterator[Given]:
    path = Path(address).expanduser().absolute()
    if path.is_file():
        yield Given(path.name, address, path, str(path.parent))
    elif path.is_dir():
        files = sorted(inner for inner in path.rglob("*") if inner.is_file() and _is_data(inner.relative_to(path).parts))
        if not files:
            raise ValueError(f"{address}: the folder has no files")
        for inner in files:
            name = inner.relative_to(path).as_posix()
            yield Given(f"{path.name}/{name}", f"{address.rstrip('/')}/{name}", inner, str(inner.parent))
    else:
        raise ValueError(f"{address}: no such file or folder")


def _is_data(parts: Iterable[str]) -> bool:
    """Whether no part of a path begins with _ or ., as the bookkeeping files of Spark and DIGR do (_SUCCESS, _manifest.json)."""
    return not any(part.startswith((".", "_")) for part in parts)


def _from_s3(address: str, room: _Scratch, report: Report) -> Iterator[Given]:
    fs, path = filesystem_of(address)
    info = fs.get_file_info(path)
    infos = [info] if info.is_file else fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    files = [
        entry for entry in infos if entry.is_file and (info.is_file or _is_data(PurePosixPath(entry.path[len(path) :]).parts[1:]))
    ]
    if not files:
        raise ValueError(f"{address}: no such file or folder")
    for entry in sorted(files, key=lambda each: each.path):
        inner = entry.path[len(path) :].lstrip("/")
        full = f"{address.rstrip('/')}/{inner}" if inner else address
        target = room.new(_ending(entry.path))
        with fs.open_input_stream(entry.path) as stream:
            _copy(iter(lambda: stream.read(CHUNK), b""), target, full, entry.size, report)
        name = f"{PurePosixPath(path).name}/{inner}" if inner else PurePosixPath(path).name
        yield Given(name, full, target, full.rpartition("/")[0])


def _from_web(address: str, room: _Scratch, report: Report) -> Given:
    try:
        url = httpx.URL(address)
        # a query may hold a signature, and the rest a password: neither is printed or written down
        shown = str(url.copy_with(query=None, fragment=None, userinfo=b""))
        with httpx.stream("GET", url, follow_redirects=True, timeout=60) as response:
            if response.is_error:
                raise ValueError(f"{shown}: not fetched: {response.status_code} {response.reason_phrase}")
            name = PurePosixPath(url.path).name
            if "." not in name:
                name = _told_name(response.headers.get("content-disposition", "")) or name or "download"
            target = room.new(_ending(name))
            length = response.headers.get("content-length")
            _copy(response.iter_bytes(CHUNK), target, shown, int(length) if length else None, report)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(f"{address.partition('?')[0]}: not fetched: {error}") from error
    return Given(name, shown, target, shown.rpartition("/")[0])


def _told_name(disposition: str) -> str:
    """Return the file name in a Content-Disposition header, without folders; empty if there is none."""
    message = Message()
    message["Content-Disposition"] = disposition
    return PurePosixPath(message.get_filename("").replace("\\", "/")).name


def _copy(chunks: Iterable[bytes], target: Path, name: str, size: int | None, report: Report) -> None:
    done, last = 0, time.monotonic()
    with target.open("wb") as out:
        for chunk in chunks:
            out.write(chunk)
            done += len(chunk)
            if time.monotonic() - last > REPORT_SECONDS:
                last = time.monotonic()
                report(f"{name}: {done / 1e6:,.0f} MB" + (f" of {size / 1e6:,.0f}" if size else ""))
    report(f"{name}: fetched {done / 1e6:,.1f} MB")


def _ending(name: str) -> str:
    """Return the ending of a file name that tells its format, of at most two parts such as .tar.gz."""
    return "".join(PurePosixPath(name).suffixes[-2:])[-16:].lower()


def _unpacked(given: Given, room: _Scratch, report: Report) -> list[Given]:
    name = given.name.lower()
    try:
        if _packing(name, TARS) is not None:
            return list(_members(given, _tar_members(given), room, report))
        if name.endswith(".zip"):
            return list(_members(given, _zip_members(given), room, report))
        if _packing(name, PACKED):
            return [_plain(given, room, _budget(given.path))[0]]
    except BROKEN as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(f"{given.address}: cannot be unpacked beside --out: {error}; give it more room") from error
        raise ValueError(f"{given.address}: the archive is broken: {error}") from error
    return [given]


def _packing(name: str, endings: Iterable[str]) -> str | None:
    """Return the ending that a file's name has; None if it has none of them."""
    return next((ending for ending in endings if name.lower().endswith(ending)), None)


def _plain(given: Given, room: _Scratch, limit: int) -> tuple[Given, int]:
    """Unpack a file that holds one other; return that file and its size."""
    ending = _packing(given.name, PACKED) or ""
    name = given.name[: -len(ending)]
    target = room.new(_ending(name))
    with PACKED[ending](given.path) as stream:
        size = _extract(stream, target, given, limit)
    return given._replace(name=name, path=target), size


def _zip_members(given: Given) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(given.path) as archive:
        for entry in archive.infolist():
            if not entry.is_dir():
                with archive.open(entry) as stream:
                    yield entry.filename, stream


def _tar_members(given: Given) -> Iterator[tuple[str, IO[bytes]]]:
    packing = TARS[_packing(given.name, TARS) or ""]
    opened = PACKED[packing](given.path) if packing else given.path.open("rb")
    with opened as packed, tarfile.open(fileobj=packed, mode="r|") as archive:
        for entry in archive:
            stream = archive.extractfile(entry) if entry.isfile() else None
            if stream:
                yield entry.name, stream


def _members(given: Given, members: Iterator[tuple[str, IO[bytes]]], room: _Scratch, report: Report) -> Iterator[Given]:
    """Unpack members into files with new names, so that none can write elsewhere; inner archives stay packed."""
    left = _budget(given.path)
    for number, (inner, stream) in enumerate(members):
        if number >= MAX_MEMBERS:
            raise ValueError(f"{given.address}: more than {MAX_MEMBERS} files in the archive; unpack it and give those you need")
        parts = [part for part in PurePosixPath(inner.replace("\\", "/")).parts if part not in ("/", "..")]
        if not parts or not _is_data(parts) or parts[0] == "__MACOSX":
            continue
        target = room.new(_ending(parts[-1]))
        left -= _extract(stream, target, given, left)
        unpacked = Given("/".join(parts), f"{given.address}!{'/'.join(parts)}", target, given.base)
        if _packing(parts[-1], PACKED) and not _packing(parts[-1], TARS):
            unpacked, size = _plain(unpacked, room, left)
            left -= size
        yield unpacked
    report(f"{given.address}: unpacked")


def _budget(path: Path) -> int:
    return max(FREE_BYTES, MAX_RATIO * path.stat().st_size)


def _extract(stream: IO[bytes], target: Path, given: Given, limit: int) -> int:
    done = 0
    with target.open("wb") as out:
        while chunk := stream.read(CHUNK):
            done += len(chunk)
            if done > limit:
                raise ValueError(
                    f"{given.address}: unpacks to more than {MAX_RATIO} times its size, which is unusual for tables; if this is "
                    f"right, unpack it yourself and give the files"
                )
            out.write(chunk)
    return done
