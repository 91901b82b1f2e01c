"""Every command that README.md and docs/ show exists: its words, its options and the keys it sets, by the real command line."""

import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.exceptions import TyperException
from typer.main import get_command

from digr.artifacts import COMMANDS as JOBS
from digr.config import load_config
from jobs.__main__ import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "cluster" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
TOOLS = {".", "git", "curl", "export", "ray", "serve", "docker", "mkdir", "cp"}
"""Commands of others: the files of the project that they name exist, and the job that `ray job submit` submits is checked."""


def _commands(page: Path) -> list[str]:
    blocks = re.findall(r"^ *```(?:bash|sh)\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


COMMANDS = sorted({command for page in PAGES for command in _commands(page)})


def _parse(command: Any, words: list[str]) -> tuple[Any, dict[str, Any]]:
    """Follow the words into groups, and parse what is left with the command that they name, without running it."""
    while hasattr(command, "commands") and command.commands:
        assert words, f"{command.name}: which of {sorted(command.commands)}?"
        name, *words = words
        assert name in command.commands, f"{name}: no command of {command.name}: {sorted(command.commands)}"
        command = command.commands[name]
    if "--help" in words:
        return command, {}
    return command, command.make_context(command.name or "command", list(words)).params


def _check_config(params: dict[str, Any]) -> None:
    words = list(params.get("words") or ())
    name = params.get("config") or (words.pop(0) if words and "=" not in words[0] else "")
    assert name, "no config"
    path = ROOT / name
    assert path.is_file() or (ROOT / "configs" / f"{name}.toml").is_file() or name == "CONFIG", name
    if name != "CONFIG":
        load_config(path if path.is_file() else ROOT / "configs" / f"{name}.toml", words)


def _check_digr(words: list[str]) -> None:
    _, params = _parse(get_command(app), words)
    if "print_config" in params:  # a job on a config
        _check_config(params)


def _check_module(module: str, words: list[str]) -> None:
    job = module.removeprefix("jobs.")
    spelled = {job: words for words, job in JOBS.items()} | {"import_data": "data import", "describe_data": "data describe"}
    if module == "jobs":
        _check_digr(words)
    elif module.startswith("jobs."):
        _check_digr([*spelled[job].split(), *words])
    elif module == "serve.client":
        _check_digr(words)
    elif module == "serve.keys":
        _check_digr(["keys", *words])
    elif module.startswith("benchmarks."):
        assert set(words) <= {"--quick"} or module == "benchmarks.gpu_suite" or all("=" in word for word in words), words
        import_module(module)
    else:
        assert module in ("pip", "pytest", "venv"), module


def _check_install(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        if found := re.search(r"\[([a-z,]+)\]$", word):
            assert set(found[1].split(",")) <= set(extras), word
        if word.endswith(".lock"):
            assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_can_be_run(line):
    for part in re.split(r"\s(?:&&|\|)\s", line):
        words = shlex.split(part, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        name = (Path(words[0]).name or words[0]) if words else "export"
        if name == "make":
            assert words[1] in TARGETS
        elif name == "bash":
            assert (ROOT / words[1]).is_file()
        elif name == "digr":
            _check_digr(words[1:])
        elif name == "pip":
            _check_install(words[1:])
        elif name.startswith("python"):
            assert words[1] == "-m", line
            _check_module(words[2], words[3:])
        else:
            assert name in TOOLS, f"{name}: a command that nobody knows; one of the project's, or of {sorted(TOOLS)}?"
            named = [word for word in words if re.match(r"(cluster|serve|configs)/", word)]
            assert [word for word in named if not (ROOT / word).is_file()] == []
            if "--" in words and words[1:3] == ["job", "submit"]:
                inner = words[words.index("--") + 1 :]
                assert inner[:2] == ["python", "-m"], line
                _check_module(inner[2], inner[3:])


def test_the_two_commands_that_do_everything_are_in_the_readme():
    assert {"make quickstart", "make test"} <= set(_commands(ROOT / "README.md"))
    assert {"setup", "quickstart", "serve", "test", "check", "clean"} <= set(TARGETS)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("digr train sftt configs/quickstart.toml", "no command of train"),
        ("digr train sft configs/quickstart.toml sft.epoch=3", "unknown key"),
        ("python -m jobs.train_sft --config configs/quickstart.toml --frce", "No such option: --frce"),
        ("make tset", "tset"),
        ("digr data import", "Missing argument"),
        ("ray job submit -- python -m jobs.train_sft --config configs/quickstart.toml sft.epoch=3", "unknown key"),
        ("pip install 'digr[gpuu]'", "gpuu"),
        ("pip install --constraint requirements-gpus.lock digr", "requirements-gpus.lock"),
        ("serve deploy serve/confg.yaml", "serve/confg.yaml"),
        ("digrr run", "a command that nobody knows"),
    ],
)
def test_a_wrong_command_is_found(line, problem):
    with pytest.raises((AssertionError, ValueError, TyperException)) as found:
        test_a_command_can_be_run(line)
    error = found.value
    assert problem in (error.format_message() if isinstance(error, TyperException) else str(error))
