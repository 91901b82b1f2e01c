"""Evaluate an endpoint by its log: HR@k and NDCG@k of the lists that users were shown, by what they did next.

By version, experiment arm, shadow, source and interest, each with a 95 % interval that resamples users. It reads the store that
the endpoint writes (`events_dir`), on this disk or s3://, while the endpoint goes on.
"""

import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, NoReturn

import numpy as np
from typer import Argument, Option

from digr.data.database import open_database
from digr.data.event_store import is_store
from digr.evaluation.online import RESULT, evaluate_online, online_text, read_logs
from digr.files import open_part
from jobs.runtime.command_line import JsonOption, Summary, run_and_exit, run_command
from jobs.runtime.session import log

NAME = "jobs.evaluate_online"


def online_command(summary: Summary) -> Any:
    """Return the evaluation as a function for Typer."""

    def command(
        store: Annotated[str, Argument(metavar="EVENTS_DIR", help="Folder or s3:// address that the endpoint writes events to.")],
        *,
        out: Annotated[str, Option(help="Parquet file to write, local or s3://; nothing is written by default.")] = "",
        ks: Annotated[str, Option(help="Cutoffs, with commas between.")] = "1,5,10",
        window_hours: Annotated[float, Option(min=0, help="Longest time from a list to an event that follows it.")] = 24.0,
        events: Annotated[str, Option(help="Types of events that count, with commas between; all by default.")] = "",
        resamples: Annotated[int, Option(min=1, help="Bootstrap resamples of the users.")] = 1000,
        seed: Annotated[int, Option(help="Seed of the resamples.")] = 0,
        most: Annotated[int, Option(min=1, help="Most slices shown of each kind, those with most lists.")] = 20,
        memory_gib: Annotated[float, Option(help="Memory of the database, GiB; more spills to disk.")] = 1.5,
        as_json: JsonOption = False,
    ) -> None:
        types = [word.strip() for word in events.split(",") if word.strip()]

        choices = partial(run, types=types, resamples=resamples, seed=seed, most=most, memory_gib=memory_gib)
        run_and_exit(NAME, lambda: choices(store, out, read_cutoffs(ks), window_hours), "only" if as_json else summary)

    return command


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Evaluate from the command line; the last line it prints is its summary as JSON, and a failure exits non-zero."""
    run_command(NAME, online_command("last_line"), argv, __doc__ or "")


def read_cutoffs(text: str) -> list[int]:
    """Read cutoffs with commas between.

    Raises:
        ValueError: one is no number from 1 on.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise ValueError(f"--ks {text!r}: expected whole numbers from 1 on with commas between, for example 1,5,10")
    return sorted({int(word) for word in words})


def run(
    store: str,
    out: str,
    ks: Sequence[int],
    window_hours: float,
    *,
    types: Sequence[str],
    resamples: int,
    seed: int,
    most: int,
    memory_gib: float,
) -> dict[str, Any]:
    """Print the measures of a store, and write them if `out` is given; return the summary.

    Raises:
        ValueError: the folder is no store of events, or no list was logged.
    """
    if not is_store(store):
        raise ValueError(f"{store}: no store of events; give the events_dir of the endpoint, <run>/serving/events by default")
    with tempfile.TemporaryDirectory() as scratch, open_database(memory_gib, scratch) as connection:
        counts = read_logs(connection, store, types=types, window_seconds=window_hours * 3600)
        log("online", f"{counts.lists:,} lists, {counts.events:,} events: {counts.named:,} follow the list that they name, "
            f"{counts.by_user:,} one of their user within {window_hours:g} hours")  # fmt: skip
        table = evaluate_online(connection, ks, resamples=resamples, rng=np.random.default_rng(seed), most=most)
    if out:
        with open_part(out, RESULT) as writer:
            writer.write_table(table)
    print(online_text(table), flush=True)
    return {"status": "done", "out": out, "counts": counts._asdict(), "metrics": table.to_pylist()}


if __name__ == "__main__":
    main()
