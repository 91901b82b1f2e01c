"""Turn files of interactions and items in the usual formats into a folder in the common form, which `jobs.prepare_data` reads.

Rows and texts stay unchanged; the run decides about unknown items, duplicates and HTML.
"""

import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from digr.data.database import open_database
from digr.data.importing.counts import Plan, UsedTable, kept_interactions, stripped
from digr.data.importing.fetching import S3_HINT, Report, bring
from digr.data.importing.items import TYPES, clean_items
from digr.data.importing.plan import make_plan
from digr.data.importing.report import describe
from digr.data.importing.rules import ITEM_COLUMNS, SPLIT_COLUMNS
from digr.data.importing.values import parse_history
from digr.files import filesystem_of, is_remote
from digr.tables import SPLITS

FACTS = "import.json"
IMAGE_FOLDERS = "image_folders"
"""Fact of an import: local folders of its files, where their images lie too."""
MEMORY_GIB = 2.0
"""Memory for sorts and joins; larger ones spill to disk."""
INTERACTION_ROWS, ITEM_ROWS = 500_000, 5_000
"""Rows of a batch and of a row group of the Parquet files."""
REPORT_SECONDS = 5.0


def import_data(
    addresses: Sequence[str],
    out: str,
    report: Report,
    *,
    format: str = "",
    columns: Mapping[str, Sequence[str]] = {},
    events: Sequence[str] = (),
    dates: str = "",
    check: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Read files and write them as a folder in the common form; return the content of import.json.

    Args:
        addresses: local files, folders and archives, http(s):// and s3:// addresses.
        out: folder or s3:// address to write; appears only when complete.
        report: called with each line of progress.
        format: one of `plan.FORMATS`; empty guesses for each file.
        columns: column of the common form -> columns of the files, if names are not to be guessed.
        events: values of the event column to keep; empty keeps all.
        dates: what dates such as 3/4/2021 begin with, one of `times.DATES`; empty decides by the dates themselves.
        check: stop before anything is written.
        force: replace an earlier import.

    Raises:
        ValueError: a file is wrong, or `out` exists already.
    """
    if not check:
        check_out(out, force)
    with _scratch(out) as scratch:
        given = bring(addresses, scratch / "fetched", report)
        with open_database(MEMORY_GIB, str(scratch), keep_order=True) as con:
            con.execute("SET preserve_insertion_order = true")  # rows of equal times keep the order of their file
            con.execute("SET TimeZone = 'UTC'")
            plan = make_plan(con, given, scratch, report, format=format, columns=columns, events=events, dates=dates)
            for line in describe(plan, events):
                report(line)
            facts = _facts(plan) | {IMAGE_FOLDERS: _image_folders(plan, addresses)}
            if check:
                return facts | {"rows": plan.rows, "dropped": plan.dropped}
            draft = scratch / "draft"
            written = _write_all(plan, draft, events, report)
        facts |= {"rows": written, "dropped": plan.dropped}
        (draft / FACTS).write_text(json.dumps(facts, indent=2, ensure_ascii=False, default=str) + "\n")
        _publish(draft, out, force)
        return facts


def image_folders(folder: str) -> tuple[str, ...]:
    """Return the local folders below which a folder's images may lie: itself, and those of the files imported into it."""
    fs, path = filesystem_of(folder)
    own = () if is_remote(folder) else (path,)
    if not fs.get_file_info(f"{path}/{FACTS}").is_file:
        return own
    with fs.open_input_stream(f"{path}/{FACTS}") as stream:
        return (*own, *json.loads(stream.read()).get(IMAGE_FOLDERS, ()))


def check_out(out: str, force: bool) -> None:
    """Check that `out` may be written.

    Raises:
        ValueError: it exists, or with `force`, no import wrote it.
    """
    scheme, separator, _ = out.partition("://")
    if separator and scheme != "s3":
        raise ValueError(f"--out {out}: {scheme}:// cannot be written here; expected a local folder or s3://")
    try:
        fs, path = filesystem_of(out)
        is_file = fs.get_file_info(path).is_file
        entries = [] if is_file else fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be read: {error}{S3_HINT if separator else ''}") from error
    if is_file:
        raise ValueError(f"--out {out}: is a file; expected a folder that does not exist yet")
    names = [entry.base_name for entry in entries]
    if names and not force:
        raise ValueError(f"--out {out}: exists already; give --force to replace it, or another folder")
    if names and FACTS not in names:
        raise ValueError(
            f"--out {out}: has no {FACTS}, so no import wrote it and --force does not remove it; found "
            f"{', '.join(sorted(names)[:5])}"
        )


@contextmanager
def _scratch(out: str) -> Iterator[Path]:
    """Yield a temporary folder: beside a local `out`, where there must be enough space anyway."""
    parent = None
    if out and not is_remote(out):
        parent = str(next(folder for folder in Path(filesystem_of(out)[1]).parents if folder.is_dir()))
    with tempfile.TemporaryDirectory(prefix=".import-", dir=parent) as folder:
        yield Path(folder)


def _image_folders(plan: Plan, addresses: Sequence[str]) -> list[str]:
    """Return the local folders that hold the imported files, if these name images."""
    if not any("image" in (part.reading.shown or part.reading.columns) for part in plan.items):
        return []
    given = [Path(address).expanduser().absolute() for address in addresses if "://" not in address]
    return sorted({str(path if path.is_dir() else path.parent) for path in given})


def _facts(plan: Plan) -> dict[str, Any]:
    files = []
    for table, reading in plan.tables:
        for written in table.files:
            files.append(
                {
                    "file": written.given.address,
                    "format": reading.format if reading else None,
                    "role": reading.role if reading else None,
                    "kind": written.kind,
                    "encoding": written.encoding,
                    "delimiter": written.delimiter,
                    "damaged_lines": written.damaged,
                }
            )
    tables = [
        {
            "files": table.address,
            "rows": table.rows,
            "unreadable_rows": table.bad,
            "columns": list(table.columns),
            "mapping": dict(reading.shown) or {ours: list(theirs) for ours, theirs in reading.columns.items()} if reading else {},
        }
        for table, reading in plan.tables
    ]
    return {"files": files, "tables": tables, "notes": plan.notes} | plan.facts


def _write_all(plan: Plan, draft: Path, events: Sequence[str], report: Report) -> dict[str, int]:
    rows = {}
    if plan.interactions:
        rows["interactions"] = _write_interactions(plan, draft, events, report)
    rows["items"] = _write_items(plan, draft, report)
    for split in SPLITS:
        if split in plan.splits:
            rows[f"splits/{split}"] = _write_split(plan, split, draft, report)
    if not plan.interactions:
        rows["interactions"] = _write_derived(plan, draft, report)
    for name in ("interactions", "items"):
        if plan.rows.get(name, rows[name]) != rows[name]:
            raise ValueError(
                f"{name}: {plan.rows[name]} rows were counted, but {rows[name]} written; a file may have changed: run again"
            )
    return rows


def _stream(
    plan: Plan,
    queries: Iterable[tuple[str, Callable[[pa.RecordBatch], pa.Table]]],
    *,
    names: Sequence[str],
    target: Path,
    size: int,
    report: Report,
) -> int:
    """Write the rows of queries batch by batch, each through its function from texts to columns of the common form."""
    target.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([pa.field(name, TYPES[name]) for name in names])
    done, last = 0, time.monotonic()
    with pq.ParquetWriter(target, schema) as writer:
        for query, clean in queries:
            for batch in plan.con.sql(query).to_arrow_reader(size):
                table = clean(batch).select(list(names)).cast(schema)
                writer.write_table(table, row_group_size=size)
                done += len(table)
                if time.monotonic() - last > REPORT_SECONDS:
                    last = time.monotonic()
                    report(f"{target.stem}: {done:,} rows")
    report(f"{target.stem}: {done:,} rows written")
    return done


def _write_interactions(plan: Plan, draft: Path, events: Sequence[str], report: Report) -> int:
    known = [part.reading.shown or part.reading.columns for part in plan.interactions]
    names = ["user_id", "item_id"]
    names += ["timestamp"] if any(plan.time_forms) else []
    names += ["rating"] if any("rating" in columns for columns in known) else []
    names += ["position"] if plan.facts["positions"] else []
    cells = {
        "user_id": "u AS user_id",
        "item_id": "i AS item_id",
        "timestamp": "timestamp",
        "rating": "CASE WHEN isfinite(r) THEN r END AS rating",
        "position": "try_cast(position AS INTEGER) AS position",
    }
    chosen = ", ".join(cells[name] for name in names)
    originals = _originals(plan)

    def clean(batch: pa.RecordBatch) -> pa.Table:
        table = pa.Table.from_batches([batch])
        for column in ("user_id", "item_id"):
            table = _replace(table, column, _original(table[column], originals.get(column)))
        return table

    queries = [
        (f"SELECT {chosen} FROM ({kept_interactions(part, form, events)}) WHERE reason IS NULL", clean)
        for part, form in zip(plan.interactions, plan.time_forms, strict=True)
    ]
    target = draft / "interactions.parquet"
    return _stream(plan, queries, names=names, target=target, size=INTERACTION_ROWS, report=report)


def _write_items(plan: Plan, draft: Path, report: Report) -> int:
    known = {column for part in plan.items for column in (part.reading.shown or part.reading.columns)}
    names = ["item_id", "title", *(column for column in ITEM_COLUMNS[2:-1] if column in known)]
    names += ["currency"] if "price" in known and "currency" not in known else []
    names += ["image_url", "image_file"] if "image" in known else []
    originals = _originals(plan).get("item_id")

    def cleaner(base: str) -> Callable[[pa.RecordBatch], pa.Table]:
        def clean(batch: pa.RecordBatch) -> pa.Table:
            table = clean_items(batch, base)
            return _replace(table, "item_id", _original(table["item_id"], originals))

        return clean

    queries = []
    for part in plan.items:
        ids = f"SELECT * REPLACE ({stripped('item_id')} AS item_id) FROM ({part.sql})"
        queries.append((f"SELECT * FROM ({ids}) WHERE item_id IS NOT NULL", cleaner(part.table.files[0].given.base)))
    return _stream(plan, queries, names=names, target=draft / "items.parquet", size=ITEM_ROWS, report=report)


def _write_split(plan: Plan, split: str, draft: Path, report: Report) -> int:
    originals = _originals(plan)
    dropped = plan.dropped.setdefault(f"splits/{split}", {})

    def clean(batch: pa.RecordBatch) -> pa.Table:
        texts = {name: batch.column(name).to_pylist() for name in SPLIT_COLUMNS}
        histories = [parse_history(text) for text in texts["history"]]
        flat = pa.array([item for history in histories for item in history], pa.string())
        lists = pa.ListArray.from_arrays(pa.array([0, *_ends(histories)], pa.int32()), _original(flat, originals.get("item_id")))
        users, targets = (pa.array(texts[name], pa.string()) for name in ("user_id", "target"))
        table = pa.table(
            {
                "user_id": _original(users, originals.get("user_id")),
                "history": lists,
                "target": _original(targets, originals.get("item_id")),
            }
        )
        for reason, column in (("no user id", "user_id"), ("no target", "target"), ("no history", "history")):
            lacking = pc.equal(pc.list_value_length(table[column]), 0) if column == "history" else pc.is_null(table[column])
            if count := pc.sum(lacking).as_py():
                dropped[reason] = dropped.get(reason, 0) + count
                table = table.filter(pc.invert(lacking))
        return table

    ids = ", ".join(f"{stripped(name)} AS {name}" for name in ("user_id", "target"))
    queries = [(f"SELECT * REPLACE ({ids}) FROM ({part.sql})", clean) for part in plan.splits[split]]
    target = draft / "splits" / f"{split}.parquet"
    return _stream(plan, queries, names=SPLIT_COLUMNS, target=target, size=ITEM_ROWS, report=report)


def _ends(lists: Sequence[Sequence[str]]) -> Iterator[int]:
    total = 0
    for each in lists:
        total += len(each)
        yield total


def _write_derived(plan: Plan, draft: Path, report: Report) -> int:
    """Make interactions from the splits: a user's first history, then the targets, in the order of the files."""
    files = ", ".join(f"'{draft / 'splits' / split}.parquet'".replace("''", "'") for split in SPLITS if split in plan.splits)
    rows = f"SELECT *, row_number() OVER () AS n FROM read_parquet([{files}])"
    users = f"SELECT user_id, arg_min(history, n) || list(target ORDER BY n) AS items, min(n) AS n FROM ({rows}) GROUP BY user_id"
    listed = f"SELECT n, user_id, unnest(items) AS item_id, unnest(range(len(items))) AS position FROM ({users})"
    query = f"SELECT user_id, item_id, CAST(position AS INTEGER) AS position FROM ({listed}) ORDER BY n, position"
    plan.notes.append("interactions are made from the splits: each user's first history, then the targets in their order")
    target = draft / "interactions.parquet"
    names = ("user_id", "item_id", "position")
    return _stream(plan, [(query, _as_table)], names=names, target=target, size=INTERACTION_ROWS, report=report)


def _as_table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


def _originals(plan: Plan) -> dict[str, pa.Table]:
    """Return the tables of original ids, by column."""
    return {column: _original_table(plan, parts) for column, parts in plan.original_ids.items()}


def _original_table(plan: Plan, parts: Sequence[UsedTable]) -> pa.Table:
    union = " UNION ALL ".join(
        f"SELECT {stripped('id')} AS id, {stripped('original')} AS original FROM ({part.sql})" for part in parts
    )
    return plan.con.sql(
        f"SELECT id, any_value(original) AS original FROM ({union}) WHERE id IS NOT NULL GROUP BY id"
    ).to_arrow_table()


def _original(ids: Any, originals: pa.Table | None) -> Any:
    """Return the original ids of numbered ones; ids that the table lacks stay unchanged."""
    if originals is None:
        return ids
    places = pc.index_in(ids, value_set=originals["id"].combine_chunks())
    return pc.coalesce(originals["original"].combine_chunks().take(places), ids)


def _replace(table: pa.Table, name: str, column: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def _publish(draft: Path, out: str, force: bool) -> None:
    """Move a finished folder to its place; on S3 import.json is written last, so a folder without it is incomplete."""
    check_out(out, force)
    fs, path = filesystem_of(out)
    if isinstance(fs, pafs.LocalFileSystem):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        old = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
        if target.exists():
            target.rename(old)
        draft.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        return
    if fs.get_file_info(f"{path}/{FACTS}").is_file:
        fs.delete_file(f"{path}/{FACTS}")
        fs.delete_dir(path)
    files = sorted((file for file in draft.rglob("*") if file.is_file()), key=lambda file: (file.name == FACTS, str(file)))
    for file in files:
        with file.open("rb") as source, fs.open_output_stream(f"{path}/{file.relative_to(draft).as_posix()}") as target_stream:
            shutil.copyfileobj(source, target_stream, 1 << 22)
