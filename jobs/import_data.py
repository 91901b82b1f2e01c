"""Turn usual files of interactions and items into a folder in the common form, which `jobs.prepare_data` reads.

CSV, JSON, Parquet and XML, packed or not, of shops and of public data sets; local, http(s):// or s3://. It prints what it makes
of them before it writes: `--check` stops there.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, NoReturn

from typer import Argument, Option

from digr.config import load_config
from digr.data.importing.plan import FORMATS
from digr.data.importing.times import DATES
from digr.data.importing.writing import import_data
from jobs.runtime.command_line import JsonOption, Summary, run_and_exit, run_command
from jobs.runtime.session import log

NAME = "jobs.import_data"


def import_command(summary: Summary) -> Any:
    """Return the import as a function for Typer."""

    def command(
        files: Annotated[list[str], Argument(metavar="FILES...", help="Files, folders, archives; local, http(s):// or s3://.")],
        *,
        out: Annotated[str, Option(help="Folder or s3:// address to write; data.path of --config by default.")] = "",
        format: Annotated[str, Option(help=f"Format of all files, instead of a guess for each: {', '.join(FORMATS)}.")] = "",
        config: Annotated[str, Option(help="TOML file of a run: its data.columns and data.path are read.")] = "",
        columns: Annotated[list[str] | None, Option(metavar="OURS=THEIRS", help="Name of a column that is not guessed.")] = None,
        events: Annotated[str, Option(help="Values of the event column to keep, with commas between; all by default.")] = "",
        dates: Annotated[str, Option(help=f"How to read 3/4/2021: {' or '.join(DATES)}; by default, what the dates show.")] = "",
        check: Annotated[bool, Option("--check", help="Say what would be written and stop.")] = False,
        force: Annotated[bool, Option("--force", help="Replace an earlier import.")] = False,
        as_json: JsonOption = False,
    ) -> None:
        kept = [event.strip() for event in events.split(",") if event.strip()]
        choices = partial(run, format=format, events=kept, dates=dates, check=check, force=force)
        run_and_exit(NAME, lambda: choices(files, out, config, columns or []), "only" if as_json else summary)

    return command


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Import from the command line; the last line it prints is its summary as JSON, and a failure exits non-zero."""
    run_command(NAME, import_command("last_line"), argv, __doc__ or "")


def run(
    files: Sequence[str],
    out: str,
    config: str,
    columns: Sequence[str],
    *,
    format: str,
    events: Sequence[str],
    dates: str,
    check: bool,
    force: bool,
) -> dict[str, Any]:
    """Import files, and return the summary; see `digr.data.importing.writing.import_data` for the choices.

    Raises:
        ValueError: there is nowhere to write, a column is not given as ours=theirs, or the files cannot be imported.
    """
    named: dict[str, tuple[str, ...]] = {}
    if config:
        data = load_config(config).data
        out = out or data.path
        named = {ours: (theirs,) if isinstance(theirs, str) else theirs for ours, theirs in data.columns.items()}
    if not out and not check:
        raise ValueError("--out is missing: give the folder to write, or --config with a data.path, or --check to write nothing")
    for choice in columns:
        ours, separator, theirs = choice.partition("=")
        if not separator or not ours.strip() or not theirs.strip():
            raise ValueError(f"--columns {choice!r}: expected ours=theirs, for example user_id=customer")
        named[ours.strip()] = tuple(theirs.split("|"))
    facts = import_data(
        files,
        out,
        lambda text: log("import", text),
        format=format,
        columns=named,
        events=events,
        dates=dates,
        check=check,
        force=force,
    )
    formats = sorted({file["format"] for file in facts["files"] if file["format"]})
    status = "checked" if check else "done"
    return {"status": status, "out": out, "formats": formats, "rows": facts["rows"], "dropped": facts["dropped"]}


if __name__ == "__main__":
    main()
