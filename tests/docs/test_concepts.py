"""The pages about the stages give the config's own defaults, name results that exist, and say where to look first."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from digr.config import Config, build_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "concepts").glob("*.md"))
CHOICES = re.compile(r"^\| (`[a-z_.]+`(?:, `[a-z_.]+`)*) \| ([^|]+) \|", re.MULTILINE)
DEFAULTS = build_config({"run": {"dir": "runs/none"}}, "tests")


def _default(key: str) -> Any:
    """Return the default of a key as TOML would write it: models and miners by their name, "" for nothing."""
    found: Any = DEFAULTS
    for name in key.split("."):
        found = getattr(found, name)
    if isinstance(found, tuple):
        return [getattr(each, "name", each) for each in found] or ""
    return getattr(found, "name", found)


def _told(page: Path) -> list[tuple[str, Any]]:
    """Return the keys of the table of choices, each with the default that the page tells."""
    choices = page.read_text().split("\n## Choices that matter\n")[1].split("\n## ")[0]
    told = []
    for keys, cell in CHOICES.findall(choices):
        first, *others = re.findall(r"`([a-z_.]+)`", keys)
        section = first.rpartition(".")[0]
        names = [first, *(name if "." in name else f"{section}.{name}" for name in others)]
        written = re.sub(r'(?<!")\bnone\b', '""', cell).replace("`", "")
        values = tomllib.loads(f"values = [{written}]")["values"]
        told += zip(names, values, strict=True)
    return told


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_defaults_that_a_page_tells_are_those_of_the_config(page):
    told = _told(page)
    assert len(told) >= 5
    assert told == [(key, _default(key)) for key, _ in told]


def test_every_key_that_a_page_names_is_one_of_the_config():
    sections = set(Config.model_fields)
    for page in PAGES:
        for key in re.findall(r"`((?:[a-z_]+)(?:\.[a-z_]+)+)`", page.read_text()):
            if key.split(".")[0] in sections - {"data"}:
                _default(key)


def test_every_result_that_a_page_names_is_in_the_repository():
    files = [path.name for path in (ROOT / "benchmarks" / "results").iterdir()]
    claims = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    for page in PAGES:
        measured = page.read_text().split("\n## What was measured\n")[1].split("\n## ")[0]
        named = {name for name in re.findall(r"`([a-z_0-9]+)`", measured) if name in claims or name.startswith("run_")}
        assert named, page
        for name in named:
            assert any(file.startswith(f"{name}_2-cores") for file in files), f"{page.name}: {name}"
        assert "](../results.md)" in measured


def test_every_file_that_a_page_names_exists():
    for page in PAGES:
        text = page.read_text()
        first = text.split("\n## Where to look first\n")[1]
        assert re.search(r"`(?:digr|jobs)/[a-z_/]+\.py`", first), page
        for name in re.findall(r"`((?:configs|digr|jobs|serve|benchmarks|tests)/[A-Za-z0-9_./-]+)`", text):
            assert (ROOT / name).exists(), f"{page.name}: {name}"
