"""Turn usual files of interactions and items into a folder in the common form, which `jobs.prepare_data` reads.

CSV, JSON, Parquet and XML, packed or not, of shops and of public data sets; local, http(s):// or s3://. It prints what it makes
of them before it writes: `--check` stops there.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from digr.config import load_config
from digr.data.importing.plan import FORMATS
from digr.data.importing.writing import import_data
from jobs.runtime.session import log, run_and_exit


def main(argv: Sequence[str] | None = None) -> None:
    """Import from the command line; the last line it prints is its summary as JSON, and a failure exits non-zero."""
    parser = argparse.ArgumentParser(prog="python -m jobs.import_data", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILES", help="files, folders, archives; local, http(s):// or s3://")
    parser.add_argument("--out", default="", help="folder or s3:// address to write; data.path of --config by default")
    parser.add_argument("--format", default="", help=f"of all files, instead of a guess for each: {', '.join(FORMATS)}")
    parser.add_argument("--config", default="", help="TOML file of a run: its data.columns and data.path are read")
    parser.add_argument("--columns", nargs="+", default=[], metavar="ours=theirs", help="names of columns that are not guessed")
    parser.add_argument("--events", default="", help="values of the event column to keep, with commas between; all by default")
    parser.add_argument("--check", action="store_true", help="say what would be written and stop")
    parser.add_argument("--force", action="store_true", help="replace an earlier import")
    arguments = parser.parse_intermixed_args(argv)
    run_and_exit("jobs.import_data", lambda: run(arguments))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Import what the arguments say, and return the summary."""
    out, columns = arguments.out, {}
    if arguments.config:
        data = load_config(arguments.config).data
        out = out or data.path
        columns = {ours: (theirs,) if isinstance(theirs, str) else theirs for ours, theirs in data.columns.items()}
    if not out and not arguments.check:
        raise ValueError("--out is missing: give the folder to write, or --config with a data.path, or --check to write nothing")
    for choice in arguments.columns:
        ours, separator, theirs = choice.partition("=")
        if not separator or not ours.strip() or not theirs.strip():
            raise ValueError(f"--columns {choice!r}: expected ours=theirs, for example user_id=customer")
        columns = columns | {ours.strip(): tuple(theirs.split("|"))}
    facts = import_data(
        arguments.files,
        out,
        lambda text: log("import", text),
        format=arguments.format,
        columns=columns,
        events=[event.strip() for event in arguments.events.split(",") if event.strip()],
        check=arguments.check,
        force=arguments.force,
    )
    formats = sorted({file["format"] for file in facts["files"] if file["format"]})
    status = "checked" if arguments.check else "done"
    return {"status": status, "out": out, "formats": formats, "rows": facts["rows"], "dropped": facts["dropped"]}


if __name__ == "__main__":
    main()
