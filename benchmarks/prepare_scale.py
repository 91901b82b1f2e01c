"""Time and memory of `jobs.prepare_data` at two sizes, with a 5-core.

The interactions are as skewed as sales are, unsorted, with times, and their items have descriptions; they are written in the
common form. The job then runs in a process of its own, as a user starts it, and the benchmark samples the resident memory of
that process and its children. `DIGR_INTERACTIONS=100000000` measures that size alone.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import psutil

from benchmarks.harness import Bar, Measurement, main

BAR = Bar(full=1.0, quick=1.0, quick_reason="a thirtieth of the rows: no figure is near its limit")
"""Of the largest share of its limit that a figure takes."""
MAX_SECONDS, MAX_GIGABYTES, MAX_GROWTH = 300.0, 3.0, 2.2
MAX_SECONDS_LARGE, MAX_GIGABYTES_LARGE = 3600.0, 24.0
"""Of sizes above the larger one."""
SIZES, SIZES_QUICK = (5_000_000, 10_000_000), (150_000, 300_000)
ROWS_PER_ITEM, ROWS_PER_USER = 20, 12
WORDS = "brass oak steel lamp shelf garden kitchen small large bright folding quiet warm winter"
MEMORY_GIB, MEMORY_GIB_LARGE = 2.0, 8.0
"""Of the job's database: the default, and for more rows than the larger size."""


def write_tables(folder: Path, num_rows: int) -> None:
    """Write items with a title, a description of 40 words with markup in it and a price, and interactions in no order.

    The counts of users and of items fall as a power of their rank.
    """
    num_items, num_users = num_rows // ROWS_PER_ITEM, num_rows // ROWS_PER_USER
    words = ", ".join(f"'{word}'" for word in WORDS.split())
    word = f"list_value({words})[1 + (hash(i, w) % {len(WORDS.split())})::INTEGER]"
    with duckdb.connect(config={"temp_directory": str(folder / "spilled"), "preserve_insertion_order": False}) as connection:
        connection.execute(
            f"COPY (SELECT printf('B%09d', i) AS item_id, printf('A %s, number %d', any_value({word}), i) AS title, "
            f"'<p>' || string_agg({word}, ' ') || '</p>' AS description, round(1 + (hash(i) % 10000) / 100, 2) AS price "
            f"FROM range({num_items}) items(i), range(40) words(w) GROUP BY i) TO '{folder}/items.parquet'"
        )
        item, user = (f"floor(pow(random(), {power}) * {count})::BIGINT" for power, count in ((2, num_items), (1.5, num_users)))
        connection.execute(
            f"COPY (SELECT printf('A%012X', {user} * 7919 % {num_users}) AS user_id, printf('B%09d', {item}) AS item_id, "
            f"1500000000 + (random() * 100000000)::BIGINT AS timestamp, 1.0 + floor(random() * 5) AS rating "
            f"FROM range({num_rows})) TO '{folder}/interactions.parquet'"
        )


def run_job(folder: Path, memory_gib: float) -> dict[str, Any]:
    """Run the job on what a folder holds; returns its seconds, the most memory of its processes and its summary."""
    config = folder / "config.toml"
    config.write_text(
        f'[run]\ndir = "{folder}/run"\n[data]\nsource = "parquet"\npath = "{folder}"\nsplit = "temporal"\ncore = 5\n'
        f'duplicates = "drop"\n[cluster]\nprepare_memory_gib = {memory_gib}\n'
    )
    start, most = time.monotonic(), 0
    with Path(folder / "log.txt").open("w") as log:
        job = subprocess.Popen([sys.executable, "-m", "jobs.prepare_data", "--config", str(config)], stdout=log)
        while job.poll() is None:
            most = max(most, resident(job.pid))
            time.sleep(0.05)
    seconds = time.monotonic() - start
    if job.returncode:
        raise RuntimeError(f"the job failed: {(folder / 'log.txt').read_text()[-2000:]}")
    summary = json.loads((folder / "log.txt").read_text().strip().splitlines()[-1])
    return {"seconds": seconds, "gigabytes": most / 1e9, "rows": summary["rows"]}


def resident(pid: int) -> int:
    """Return the bytes of memory of the largest of a process and its children; 0 if it has ended."""
    try:
        process = psutil.Process(pid)
        return max(each.memory_info().rss for each in (process, *process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


def measure(quick: bool) -> Measurement:
    """Prepare two sizes, the second twice as large as the first, or one that the environment names."""
    asked = int(os.environ.get("DIGR_INTERACTIONS", 0))
    sizes = (asked,) if asked else SIZES_QUICK if quick else SIZES
    figures, seconds = dict[str, Any](), []
    for num_rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_tables(Path(folder), num_rows)
            found = run_job(Path(folder), MEMORY_GIB if num_rows <= SIZES[-1] else MEMORY_GIB_LARGE)
        seconds.append(found["seconds"])
        figures |= {f"{name}_at_{num_rows}": round(found[name], 2) for name in ("seconds", "gigabytes")}
        figures |= {f"{name}_rows_at_{num_rows}": count for name, count in found["rows"].items()}
    large = sizes[-1] > SIZES[-1]
    most_seconds, most_gigabytes = (MAX_SECONDS_LARGE, MAX_GIGABYTES_LARGE) if large else (MAX_SECONDS, MAX_GIGABYTES)
    shares = {"seconds": seconds[-1] / most_seconds, "gigabytes": figures[f"gigabytes_at_{sizes[-1]}"] / most_gigabytes}
    if len(sizes) == 2:
        figures["growth"] = round(seconds[1] / seconds[0], 3)
        shares["growth"] = figures["growth"] / MAX_GROWTH
    figures["ratio_is"] = f"the largest share of {most_seconds:.0f} s, {most_gigabytes:.0f} GB or {MAX_GROWTH} times the time"
    return Measurement(figures, ratio=max(shares.values()))


if __name__ == "__main__":
    main(measure, BAR)
