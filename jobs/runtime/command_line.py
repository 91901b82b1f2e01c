"""The command line of every job, alone (`python -m jobs.<job>`) and as a part of `digr`: options, help, exit codes."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from digr.config import Config, load_config
from digr.config.fields import FieldRow, iter_fields, iter_inner_tables
from digr.config.presets import preset_names
from jobs.runtime.progress import BARS
from jobs.runtime.session import Options

Run = Callable[..., dict[str, Any]]
"""A job's `run(config, options)`."""
Summary = Literal["none", "last_line", "only"]
"""Where a job's summary goes, as one line of JSON: nowhere, behind all other lines, or to stdout with all lines on stderr."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary alone to stdout, as one line of JSON.")]

ALWAYS_READ = ("run", "cluster")
"""Sections that every job reads."""
POLICY_SECTIONS = ("policy", "tasks", "train")
SECTIONS: dict[str, tuple[str, ...]] = {
    "prepare_data": ("data",),
    "mine_interests": ("interests",),
    "train_classifier": ("classifier",),
    "label_interests": ("labels",),
    "embed_items": ("embeddings",),
    "build_neighbours": ("embeddings", "ranking"),
    "train_ranker": ("ranking",),
    "tune_codebooks": ("sids", "tune", *POLICY_SECTIONS, "sft", "decoding"),
    "build_sids": ("sids",),
    "train_sft": ("data", *POLICY_SECTIONS, "sft"),
    "train_grpo": (*POLICY_SECTIONS, "grpo"),
    "train_towers": ("towers",),
    "recommend": ("decoding", "ranking", "policy", "towers"),
    "evaluate": ("evaluation", "ablations"),
    "compare_runs": ("evaluation", "seeds"),
}
"""Sections of the config that decide what a job makes; its help lists their fields. The pipeline reads all."""


def run_job(
    name: str,
    run: Run,
    words: Sequence[str],
    *,
    config: str = "",
    print_config: bool = False,
    options: Options,
    summary: Summary,
) -> NoReturn:
    """Run a job on a config with overrides, and exit.

    Args:
        name: the job's, for its summary.
        run: the job.
        words: the config, unless `config` names it, and then `section.key=value` overrides.
        config: TOML file or preset.
        print_config: print the checked config as JSON in place of running.
        options: how the job treats what exists.
        summary: where the summary goes.
    """

    def checked() -> Any:
        overrides = list(words)
        path = config or (overrides.pop(0) if overrides and "=" not in overrides[0] else "")
        if not path:
            raise ValueError("no config: name a TOML file or a preset, for example configs/quickstart.toml")
        return load_config(path, overrides)

    if print_config:
        run_and_exit(name, lambda: print(checked().model_dump_json(indent=2)), "last_line" if summary == "only" else summary)
    run_and_exit(name, lambda: run(checked(), options), summary)


def job_command(name: str, load: Callable[[], Run], force: Literal["stale", "all"], summary: Summary) -> Callable[..., None]:
    """Return a job as a function for Typer.

    Args:
        name: of the job's module, such as "jobs.train_sft".
        load: imports the job, which happens only when it runs.
        force: what `--force` rebuilds.
        summary: where the summary goes without `--json`.
    """

    def command(
        words: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="CONFIG [section.key=value ...]",
                help="TOML file or preset of the run, and values that replace some of it.",
                autocompletion=complete,
            ),
        ] = None,
        *,
        config: Annotated[str, typer.Option(help="The same TOML file or preset, as an option.")] = "",
        print_config: Annotated[bool, typer.Option("--print-config", help="Print the checked config as JSON and stop.")] = False,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be built and stop.")] = False,
        rebuild: Annotated[
            bool, typer.Option("--force", help="Rebuild what exists." if force == "all" else "Rebuild what no longer matches.")
        ] = False,
        as_json: JsonOption = False,
    ) -> None:
        options = Options(force if rebuild else "no", dry_run)
        where: Summary = "only" if as_json else summary
        run_job(name, load(), words or (), config=config, print_config=print_config, options=options, summary=where)

    return command


def main(run: Run, argv: Sequence[str] | None = None, force: Literal["stale", "all"] = "all") -> NoReturn:
    """Run a job from its own command line; the last line it prints is its summary as JSON."""
    name = run.__module__ if run.__module__ != "__main__" else getattr(sys.modules["__main__"].__spec__, "name", "jobs")
    doc = (sys.modules[run.__module__].__doc__ or "").strip()
    run_command(name, job_command(name, lambda: run, force, "last_line"), argv, doc, fields_help(name.rpartition(".")[2]))


def run_command(
    name: str, command: Callable[..., None], argv: Sequence[str] | None, doc: str, kind: type[TyperCommand] = TyperCommand
) -> NoReturn:
    """Run one command of a module from its own command line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=kind, help=doc)(command)
    app(args=None if argv is None else list(argv), prog_name=f"python -m {name}")
    sys.exit(0)


def fields_help(job: str) -> type[TyperCommand]:
    """Return a command whose help ends with the fields of the config that a job reads."""

    class JobCommand(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            console = Console()
            for table in _field_tables(job):
                console.print(table)

    return JobCommand


def _field_tables(job: str) -> Iterator[Table]:
    sections = (*ALWAYS_READ, *SECTIONS[job]) if job in SECTIONS else tuple(Config.model_fields)
    tables: dict[str, list[FieldRow]] = {}
    for row in iter_fields(Config):
        tables.setdefault(row.key.partition(".")[0], []).append(row)
    for inner in iter_inner_tables(Config):
        key = f"[{inner.key}]" if inner.is_list else inner.key
        tables[f"{key} kind = {inner.kind}" if inner.kind else key] = list(iter_fields(inner.model))
    for title, rows in tables.items():
        if title.lstrip("[").partition(" ")[0].partition(".")[0].rstrip("]") in sections:
            yield _field_table(title, rows)


def _field_table(title: str, rows: Sequence[FieldRow]) -> Table:
    table = Table("key", "value", "default", "meaning", title=Text(f"[{title}]"), title_justify="left", expand=True)
    for row in rows:
        value = f"{row.type}, {row.limits}" if row.limits else row.type
        table.add_row(*(Text(cell) for cell in (row.key, value, row.default, row.meaning)))
    return table


def complete(incomplete: str) -> list[str]:
    """Complete a TOML file of this folder, the name of a preset, or a key of the config."""
    files = [str(path) for folder in (Path(), Path("configs")) for path in sorted(folder.glob("*.toml"))]
    keys = [f"{row.key}=" for row in iter_fields(Config)]
    return [word for word in (*files, *preset_names(), *keys) if word.startswith(incomplete)]


def run_and_exit(name: str, run: Callable[[], dict[str, Any] | None], summary: Summary = "last_line") -> NoReturn:
    """Run a job and exit: 0, 2 for what a user can mend, 1 for a failure.

    Args:
        name: of the job.
        run: gives the summary; None has none unless it fails.
        summary: where the summary goes.
    """
    found: dict[str, Any] | None = {"job": name, "status": "failed"}
    code = 1
    try:
        with redirect_stdout(sys.stderr) if summary == "only" else nullcontext():
            made = run()
        found = None if made is None else {"job": name, "status": "failed"} | made
        code = 0
    except Exception as error:
        if (message := _user_error(error)) is None:
            found = {"job": name, "status": "failed", "error": f"{type(error).__name__}: {error}"}
            raise
        found = {"job": name, "status": "failed", "error": message}
        print(f"error: {message}", file=sys.stderr, flush=True)
        code = 2
    finally:
        BARS.close()
        if found is not None and summary != "none":
            print(json.dumps(found, default=str), flush=True)
    sys.exit(code)


def _user_error(error: BaseException | None) -> str | None:
    """Return the message of what a user can mend behind an error of the driver, Ray Data or Ray Train.

    That is a ValueError, or an S3 storage that does not answer or refuses.
    """
    while error:
        inner = _behind_ray(error) if "ray" in sys.modules else None
        if inner:
            error = inner
        elif isinstance(error, ValueError):
            return str(error).partition("\nFailed to apply UDF transform")[0]  # Ray Data adds advice of its own
        elif isinstance(error, OSError) and "AWS Error" in str(error):  # Arrow's error names the bucket and what was tried
            return f"{error}; check the address, the credentials and AWS_ENDPOINT_URL"
        else:
            error = error.__cause__
    return None


def _behind_ray(error: BaseException) -> BaseException | None:
    """Return what a worker raised, of an error that Ray wraps around it; one around a ValueError is a ValueError too."""
    from ray.exceptions import RayTaskError
    from ray.train import WorkerGroupError

    if isinstance(error, WorkerGroupError):
        return next(iter(error.worker_failures.values()))
    return error.cause if isinstance(error, RayTaskError) else None
