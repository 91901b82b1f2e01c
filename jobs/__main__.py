"""Everything DIGR does: jobs on data and runs, and an endpoint to start and to ask.

The help of a job lists the fields of the config that it reads. `python -m jobs` is the same command.
"""

import ast
import importlib
from functools import partial
from pathlib import Path
from typing import Any

import typer

from digr.artifacts import COMMANDS
from jobs.describe_data import describe_command
from jobs.evaluate_online import online_command
from jobs.import_data import import_command
from jobs.runtime.command_line import fields_help, job_command
from serve.asking.command_line import PANEL, add_commands
from serve.keys import print_key
from serve.run import serve

GROUPS = {
    "data": "Import, describe and prepare interactions and items.",
    "interests": "Mine interests with language models, and label which to trust.",
    "sids": "Build semantic IDs, and sweep their codebooks.",
    "train": "Train the interest classifier, the policy, the ranker and the baselines.",
}


def build_app() -> typer.Typer:
    """Return the whole command; a job on a config is imported when it runs, so that help and completion need no Ray."""
    app = typer.Typer(name="digr", help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
    groups = {name: typer.Typer(help=text, no_args_is_help=True) for name, text in GROUPS.items()}
    for words, job in COMMANDS.items():
        group, _, verb = words.rpartition(" ")
        command = job_command(f"jobs.{job}", partial(_load, job), "stale" if job == "pipeline" else "all", "none")
        (groups[group] if group else app).command(verb, cls=fields_help(job), help=_doc(job))(command)
    groups["data"].command("import", help=_doc("import_data"))(import_command("none"))
    groups["data"].command("describe", help=_doc("describe_data"))(describe_command("none"))
    app.command("evaluate-online", help=_doc("evaluate_online"))(online_command("none"))
    for name, group_app in groups.items():
        app.add_typer(group_app, name=name)
    app.command("serve", rich_help_panel=PANEL)(serve)
    add_commands(app)
    app.command("keys", rich_help_panel=PANEL)(print_key)
    return app


def _load(job: str) -> Any:
    return importlib.import_module(f"jobs.{job}").run


def _doc(job: str) -> str:
    """Return what a job's file says of itself, without importing it."""
    return ast.get_docstring(ast.parse(Path(__file__).with_name(f"{job}.py").read_text())) or ""


app = build_app()

if __name__ == "__main__":
    app(prog_name="digr")
