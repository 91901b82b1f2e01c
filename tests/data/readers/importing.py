"""What the tests of formats share: write files, import them, read the result."""

from pathlib import Path

import pyarrow.parquet as pq

from digr.data.importing import import_data


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    """Write files by their paths below a folder, and return the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def imported(out: Path, *files: Path, **options) -> tuple[dict, list[str]]:
    """Import and return the facts, and the lines that were printed."""
    lines: list[str] = []
    return import_data([str(file) for file in files], str(out), lines.append, **options), lines


def rows(out: Path, name: str) -> list[dict]:
    """Return the rows of a table of the result, without what is null."""
    table = pq.read_table(out / f"{name}.parquet").to_pylist()
    return [{key: value for key, value in row.items() if value is not None} for row in table]


def seconds(out: Path) -> list[tuple[str, str, float | None]]:
    """Return users, items and times in seconds since 1970 of the interactions."""
    return [
        (row["user_id"], row["item_id"], row["timestamp"].timestamp() if "timestamp" in row else None)
        for row in rows(out, "interactions")
    ]
