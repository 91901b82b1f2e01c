"""README.md is short, and what it and the other pages beside docs/ name and link to exists."""

import json
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


SYSTEMS = {
    "**DIGR, ranked**": {"ranked"},
    "DIGR, policy alone": {"sid_grpo", "grpo"},
    "sum of an ID and a text tower, ours": {"two_towers"},
    "SASRec, ours": {"sasrec"},
    "counts of what follows, whole history": {"transition_counts_history"},
}
"""Row of the README's table -> the system's name in reports, and in comparisons of seeds."""


def test_the_numbers_of_the_table_of_systems_are_those_of_the_files_that_it_links():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("| ")]
    checked, path = 0, ""
    for _, name, *numbers, file in (row for row in rows if len(row) == 5 and "published" not in row[1] and row[0] != "data"):
        path = path if file == "the same" else re.search(r"\((.+)\)", file)[1]
        metrics = json.loads((ROOT / path).read_text())["metrics"]
        for (measure, k), shown in zip((("hr", 10), ("ndcg", 10)), numbers, strict=True):
            wanted = {"split": "test", "slice": "all", "name": measure, "k": k}
            systems = SYSTEMS[name.partition(", mean of")[0]]
            [found] = [each for each in metrics if each["system"] in systems and wanted.items() <= each.items()]
            values = [f"{found[key]:.3f}".removeprefix("0") for key in ("value", "low", "high")]
            texts = re.findall(r"\.\d+", shown)
            assert texts == values[: len(texts)] and texts, (name, measure)
            checked += 1
    assert checked == 16


SPEEDS = {
    "decoder": lambda figures: f"{figures['1000000_items_beam_50_batch_32_speedup']:.0f} times as fast",
    "sft": lambda figures: f"{figures['scratch_speedup']} times as many tokens",
    "mining": lambda figures: f"{figures['mining_job_seconds'] / figures['bare_chat_seconds']:.2f} times the time",
    "prepare": lambda figures: f"{figures['seconds_at_10000000']:.0f} s, {figures['gigabytes_at_10000000']} GB",
}
"""Name of a link in the README's table of speeds -> the words of its cell, from the figures of the file."""


def test_the_numbers_of_the_table_of_speeds_are_those_of_the_files_that_it_links():
    table = README.partition("| speed, against")[2].partition("\n\n")[0]
    shown = {name: (cell, path) for cell, name, path in re.findall(r"\| ([^|]+) \| \[(\w+)\]\((\S+)\) \|", table)}
    files = {name: json.loads((ROOT / path).with_suffix(".json").read_text()) for name, (_, path) in shown.items()}
    assert {name: cell for name, (cell, _) in shown.items()} == {
        name: say(files[name]["figures"]) for name, say in SPEEDS.items()
    }


@pytest.mark.parametrize("page", ["README.md", "cluster/README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_and_named_files_exist(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target
    for name in re.findall(r"`((?:configs|digr|jobs|serve|cluster|benchmarks|tests)/[A-Za-z0-9_./-]+)`", text):
        assert (ROOT / name).exists(), name
