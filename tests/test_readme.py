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


def test_every_make_target_and_environment_variable_that_is_named_exists():
    for target in re.findall(r"`make ([a-z]+)`", README):
        assert target in TARGETS
    assert "DIGR_DATA" in (ROOT / "tests" / "real_data.py").read_text()


@pytest.mark.parametrize("page", ["README.md", "cluster/README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_and_named_files_exist(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target
    for name in re.findall(r"`((?:configs|digr|jobs|serve|cluster|benchmarks|tests)/[A-Za-z0-9_./-]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_extras_that_are_named_exist():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"laptop", "cpu", "gpu", "dev"} == set(extras)
    for name in re.findall(r'-e "\.\[([a-z]+)\]"', README):
        assert name in extras
