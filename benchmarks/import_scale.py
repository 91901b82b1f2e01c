"""Time and memory of `jobs.import_data` at two sizes, with DuckDB's plain copy of the same files as the floor.

Interactions and items are CSV as a shop exports them: unsorted, as skewed as sales are, dates as texts, prices with a currency,
descriptions with commas and quotation marks. The job runs in a process of its own, as a user starts it, and so does the copy,
`COPY (FROM 'file.csv') TO 'file.parquet'` for both files; the resident memory of each process and its children is sampled.
The copy guesses types and knows nothing of users and items; what the import takes beyond it pays for the mapping, the checks
and the counts. `DIGR_INTERACTIONS=100000000` measures that size alone.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow.parquet as pq

from benchmarks.harness import Bar, Measurement, main
from benchmarks.prepare_scale import ROWS_PER_ITEM, ROWS_PER_USER, SIZES, SIZES_QUICK, WORDS, resident

BAR = Bar(full=1.0, quick=1.0, quick_reason="a thirtieth of the rows: no figure is near its limit")
"""Of the largest share of its limit that a figure takes."""
MAX_GROWTH, MAX_GIGABYTES = 2.2, 3.0
MEMORY_LIMIT = "2GB"
"""Of the copy's database, as much as the import's."""
COPY = """
import sys, duckdb
folder, limit = sys.argv[1:]
con = duckdb.connect(config={"memory_limit": limit, "temp_directory": folder + "/spilled"})
for name in ("orders", "products"):
    con.execute(f"COPY (SELECT * FROM read_csv('{folder}/{name}.csv')) TO '{folder}/{name}.parquet'")
"""


class Run(NamedTuple):
    """What a process took."""

    seconds: float
    cpu_seconds: float
    """Of the process and its children, user and system."""
    gigabytes: float
    """Most resident memory of one process."""
    last_line: str
    """Of what it printed."""


def write_tables(folder: Path, num_rows: int) -> None:
    """Write `orders.csv` and `products.csv`."""
    num_items, num_users = num_rows // ROWS_PER_ITEM, num_rows // ROWS_PER_USER
    words = ", ".join(f"'{word}'" for word in WORDS.split())
    word = f"list_value({words})[1 + (hash(i, w) % {len(WORDS.split())})::INTEGER]"
    with duckdb.connect(config={"temp_directory": str(folder / "spilled"), "preserve_insertion_order": False}) as connection:
        connection.execute(
            f"COPY (SELECT printf('B%09d', i) AS sku, printf('A \"%s\", number %d', any_value({word}), i) AS name, "
            f"'<p>' || string_agg({word}, ', ') || '</p>' AS description, "
            f"printf('%d.%02d EUR', 1 + hash(i) % 100, hash(i) % 100) AS price, "
            f"any_value({word}) || ' > ' || any_value({word}) AS category "
            f"FROM range({num_items}) items(i), range(40) words(w) GROUP BY i) TO '{folder}/products.csv'"
        )
        item, user = (f"floor(pow(random(), {power}) * {count})::BIGINT" for power, count in ((2, num_items), (1.5, num_users)))
        connection.execute(
            f"COPY (SELECT printf('A%012X', {user} * 7919 % {num_users}) AS customer_id, printf('B%09d', {item}) AS sku, "
            f"strftime(make_timestamp((1500000000 + (random() * 100000000)::BIGINT) * 1000000), '%Y-%m-%d %H:%M:%S') "
            f"AS order_date, 1 + floor(random() * 5)::INTEGER AS stars FROM range({num_rows})) TO '{folder}/orders.csv'"
        )


def run(words: list[str], log: Path) -> Run:
    """Run a command and sample its memory.

    Raises:
        RuntimeError: it failed.
    """
    start, before, most = time.monotonic(), os.times(), 0
    with log.open("w") as out:
        process = subprocess.Popen(words, stdout=out)
        while process.poll() is None:
            most = max(most, resident(process.pid))
            time.sleep(0.05)
    seconds, after = time.monotonic() - start, os.times()
    text = log.read_text()
    if process.returncode:
        raise RuntimeError(f"{words[:3]} failed: {text[-2000:]}")
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return Run(seconds, cpu, most / 1e9, (text.strip().splitlines() or [""])[-1])


def measure_size(num_rows: int) -> tuple[Run, Run]:
    """Import and copy files of a size; return what each took.

    Raises:
        RuntimeError: the import lost a row.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tables(folder, num_rows)
        files = [str(folder / "orders.csv"), str(folder / "products.csv")]
        copied = run([sys.executable, "-c", COPY, str(folder), MEMORY_LIMIT], folder / "copy.txt")
        out = folder / "out"
        imported = run([sys.executable, "-m", "jobs.import_data", *files, "--out", str(out)], folder / "import.txt")
        expected = {"interactions": num_rows, "items": num_rows // ROWS_PER_ITEM}
        found = {table: pq.read_metadata(out / f"{table}.parquet").num_rows for table in expected}
        if found != expected or json.loads(imported.last_line)["rows"] != expected:
            raise RuntimeError(f"expected {expected}, found {found}, the job said {imported.last_line}")
    return imported, copied


def measure(quick: bool) -> Measurement:
    """Import two sizes, the second twice as large as the first, or one that the environment names."""
    asked = int(os.environ.get("DIGR_INTERACTIONS", 0))
    sizes = (asked,) if asked else SIZES_QUICK if quick else SIZES
    figures, runs = dict[str, Any](), []
    for num_rows in sizes:
        imported, copied = measure_size(num_rows)
        runs.append(imported)
        for who, each in (("", imported), ("copy_", copied)):
            for unit in ("seconds", "cpu_seconds", "gigabytes"):
                figures[f"{who}{unit}_at_{num_rows}"] = round(getattr(each, unit), 2)
        figures[f"cpu_over_copy_at_{num_rows}"] = round(imported.cpu_seconds / copied.cpu_seconds, 2)
    shares = {"gigabytes": max(each.gigabytes for each in runs) / MAX_GIGABYTES}
    if len(sizes) == 2:
        figures["growth"] = round(runs[1].seconds / runs[0].seconds, 3)
        figures["cpu_growth"] = round(runs[1].cpu_seconds / runs[0].cpu_seconds, 3)
        shares["growth"] = figures["growth"] / MAX_GROWTH
    figures["ratio_is"] = f"the largest share of {MAX_GIGABYTES:.0f} GB or {MAX_GROWTH} times the time for twice the rows"
    return Measurement(figures, ratio=max(shares.values()))


if __name__ == "__main__":
    main(measure, BAR)
