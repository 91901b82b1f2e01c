"""What the tests of imports share: write files, import them, read the result."""

from pathlib import Path

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from digr.data.importing.writing import import_data

ITEMS = "item_id,title\na,Pan\nb,Pot\n"


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    """Write files by their paths below a folder, and return the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def write_files(folder: Path, **files: str | bytes) -> list[Path]:
    """Write files into a folder and return their paths; `__` in a name stands for a dot."""
    names = {name.replace("__", "."): content for name, content in files.items()}
    return [write(folder, names) / name for name in names]


def imported(out: Path | str, *files: Path | str, **options) -> tuple[dict, list[str]]:
    """Import and return the facts, and the lines that were printed."""
    lines: list[str] = []
    return import_data([str(file) for file in files], str(out), lines.append, **options), lines


def all_rows(out: Path | str, name: str) -> list[dict]:
    """Return the rows of a table of the result, in a local folder or on S3."""
    fs, path = pafs.FileSystem.from_uri(out) if str(out).startswith("s3://") else (pafs.LocalFileSystem(), str(out))
    return pq.read_table(f"{path}/{name}.parquet", filesystem=fs).to_pylist()


def rows(out: Path, name: str) -> list[dict]:
    """Return the rows of a table of the result, without what is null."""
    return [{key: value for key, value in row.items() if value is not None} for row in all_rows(out, name)]


def seconds(out: Path) -> list[tuple[str, str, float | None]]:
    """Return users, items and times in seconds since 1970 of the interactions."""
    return [
        (row["user_id"], row["item_id"], row["timestamp"].timestamp() if "timestamp" in row else None)
        for row in rows(out, "interactions")
    ]
