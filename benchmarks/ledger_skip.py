"""How fast a run skips what its ledger already has: rows a second, and the memory that one worker needs for it.

The ledger is written as the job writes it: small parts, the older ones merged. One ledger is that of a finished run, one that
of a killed run. A worker then reads it and goes through all requests of a run, most of which are answered. The peer does the
same with a Python set of digests.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.harness import Bar, Measurement, main
from digr import artifacts
from digr.artifacts import Store
from digr.interests import ledger
from digr.tables import TABLES

BAR = Bar(
    full=100_000,
    quick=50_000,
    better="at_least",
    quick_reason="a twentieth of the rows, so that opening the ledger's parts is most of the work",
)
ROWS, QUICK_ROWS = 1_000_000, 50_000
NEW_SHARE = 0.1
BATCH_ROWS = 1024
PART_ROWS = 64
JOIN_BLOCKS = 512
"""Parts after which the job joins the small ones."""
RESPONSE = json.dumps({"reasoning": "r" * 200, "interests": [{"interest": "weekend trout fishing", "confidence": 0.9}] * 4})


def digests(start: int, count: int) -> pa.Array:
    """Return request digests, spread over all numbers as real ones are."""
    numbers = np.arange(start, start + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return pa.array([f"{number:016x}" for number in numbers.tolist()])


def requests_of(start: int, count: int) -> pa.Table:
    """Return requests of some owners."""
    return pa.table({"owner": ["item"] * count, "owner_id": [str(start + row) for row in range(count)]}).append_column(
        "request_digest", digests(start, count)
    )


def append_parts(uri: str, rows: range) -> None:
    """Write rows in parts as small as those of a language model's batches."""
    for start in rows[::PART_ROWS]:
        requests = requests_of(start, min(PART_ROWS, rows.stop - start))
        columns: dict[str, list] = {"response": [RESPONSE] * len(requests), "status": ["ok"] * len(requests)}
        ledger.append(uri, ledger.raw_responses(requests, "m", "v1", "text", **columns))


def wanted(rows: int) -> Iterator[pa.Array]:
    """Yield the digests of a run's requests, batch by batch."""
    for start in range(0, round(rows * (1 + NEW_SHARE)), BATCH_ROWS):
        yield digests(start, BATCH_ROWS)


def skip(uri: str, rows: int, peer: bool) -> None:
    """Go through all requests and print the seconds it took, the requests left to ask, and the memory it needed."""
    batches = list(wanted(rows))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _peak_mb()
    start, cpu_start, left = time.monotonic(), time.process_time(), 0
    if peer:
        table = artifacts.open_parts(uri, TABLES[ledger.LEDGER].schema).to_table(columns=["request_digest", "status"])
        done = {row["request_digest"] for row in table.to_pylist()}
        for batch in batches:
            left += sum(digest not in done for digest in batch.to_pylist())
    else:
        numbers = ledger.done_numbers(uri)
        for batch in batches:
            left += len(batch) - int(np.count_nonzero(ledger.contains(numbers, batch)))
    seconds, cpu = time.monotonic() - start, time.process_time() - cpu_start
    found = {"seconds": seconds, "cpu_seconds": cpu, "left": left, "mb": _peak_mb() - before}
    print(json.dumps(found | {"requests": sum(map(len, batches))}))


def _peak_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _in_a_worker(uri: str, rows: int, peer: bool) -> dict[str, float]:
    call = f"from benchmarks.ledger_skip import skip; skip({uri!r}, {rows}, {peer})"
    done = subprocess.run([sys.executable, "-c", call], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(quick: bool) -> Measurement:
    """Skip what is done in the ledger of a killed run and of a finished one, and in the latter with a Python set."""
    rows = QUICK_ROWS if quick else ROWS
    figures: dict[str, float] = {"ledger_rows": rows}
    with tempfile.TemporaryDirectory() as folder:
        uri = ledger.open_ledger(Store(folder))
        small = min(2 * JOIN_BLOCKS * PART_ROWS, rows // 2)
        for start in range(0, rows - small, JOIN_BLOCKS * PART_ROWS):
            append_parts(uri, range(start, min(start + JOIN_BLOCKS * PART_ROWS, rows - small)))
            ledger.join_parts(uri)
        append_parts(uri, range(rows - small, rows))
        rates = []
        for name in ("killed_run", "finished_run", "python_set"):
            figures[f"{name}_parts"] = len(artifacts.list_parts(uri))
            found = _in_a_worker(uri, rows, name == "python_set")
            rates.append(found["requests"] / found["seconds"])
            figures |= {
                f"{name}_seconds": round(found["seconds"], 2),
                f"{name}_cpu_seconds": round(found["cpu_seconds"], 2),
                f"{name}_requests_per_second": round(rates[-1]),
                f"{name}_memory_mb": round(found["mb"]),
                f"{name}_left_to_ask": found["left"],
            }
            ledger.join_parts(uri)
    return Measurement(figures, ratio=min(rates[:2]))


if __name__ == "__main__":
    main(measure, BAR)
