"""README.md is short, and what it and the other pages beside docs/ name and link to exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_readme_is_read_in_a_few_minutes():
    assert len(README.splitlines()) <= 150
    assert max(len(line) for line in README.splitlines() if not line.startswith(("|", "[", "!", "curl"))) <= 130


PAGES = [README, *(path.read_text() for name in ("docs", "cluster") for path in sorted((ROOT / name).rglob("*.md")))]


def test_every_make_target_and_environment_variable_that_is_named_exists():
    targets = {target for page in PAGES for target in re.findall(r"`make ([a-z-]+)", page)}
    assert {"quickstart", "test", "docs"} & targets and targets <= set(TARGETS)
    folders = ("digr", "jobs", "serve", "cluster", "benchmarks", "tests")
    files = [path for name in folders for path in (ROOT / name).rglob("*") if path.suffix in (".py", ".sh", ".yaml")]
    code = "".join(path.read_text() for path in files if path != Path(__file__))
    named = {variable for page in PAGES for variable in re.findall(r"\bDIGR_[A-Z_]+\b", page)}
    assert {"DIGR_DATA", "DIGR_API_KEY"} <= named
    assert {variable for variable in named if variable not in code} == set()


@pytest.mark.parametrize("page", ["README.md", "cluster/README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_and_named_files_exist(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target
    for name in re.findall(r"`((?:configs|digr|jobs|serve|cluster|benchmarks|tests)/[A-Za-z0-9_./-]+)`", text):
        assert (ROOT / name).exists(), name
