"""The page of the `digr` command, from the command itself."""

from collections.abc import Iterator
from typing import Any

from reference_pages import code, markdown_table, plain
from typer.main import get_command

from jobs.__main__ import app


def commands_page() -> str:
    """Return the page of every command with its arguments and options."""
    parts = [
        "# Commands\n\nWhat `digr --help` says. Every job takes a config: a TOML file or the name of a preset, and any "
        "[field](config.md) as `section.key=value`. Exit codes: 0, 2 for what you can mend (a message says how), 1 for a "
        "failure.\n"
    ]
    return "\n".join(parts + [_part(words, command) for words, command in walk_commands(get_command(app), "digr")])


def walk_commands(command: Any, words: str) -> Iterator[tuple[str, Any]]:
    """Yield the words and the command of each leaf, in the order of the help."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words, command
        return
    for name, item in inner.items():
        if not item.hidden:
            yield from walk_commands(item, f"{words} {name}")


def _part(words: str, command: Any) -> str:
    shown = [item for item in command.params if not getattr(item, "hidden", False)]
    arguments = [item for item in shown if item.param_type_name == "argument"]
    options = [item for item in shown if item.param_type_name == "option"]
    usage = " ".join([words, *(_placeholder(item) for item in arguments), *(["[OPTIONS]"] if options else [])])
    rows = [[code(_placeholder(item)), plain(getattr(item, "help", None) or ""), _default(item)] for item in arguments]
    rows += [
        [", ".join(map(code, [*item.opts, *item.secondary_opts])), plain(item.help or ""), _default(item)] for item in options
    ]
    about = "\n\n".join(plain(paragraph) for paragraph in (command.help or "").split("\n\n"))
    table = markdown_table(["argument or option", "meaning", "default"], rows) if rows else ""
    return f"## {words} {{ #{words.replace(' ', '-')} }}\n\n{about}\n\n```text\n{usage}\n```\n\n{table}"


def _placeholder(argument: Any) -> str:
    if argument.metavar:
        return str(argument.metavar)
    name = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _default(item: Any) -> str:
    """Return the default where it says something: not of a switch that is off, nor of what is left empty."""
    if item.required:
        return "required"
    value = item.default
    return "" if value is None or value is False or value in ("", (), []) or callable(value) else code(str(value))
