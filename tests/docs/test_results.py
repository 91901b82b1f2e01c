"""Every number of a table in docs/results.md is in the result file that the table names, and every result is on the page.

The end of the page, "Adding a result", explains how a table says where its numbers are.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from docs.plots import PANELS

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "results.md").read_text()
RESULTS = {path.name: path for path in (ROOT / "benchmarks" / "results").glob("*.json")}
SCRIPTS = {path.stem: path.read_text() for path in (ROOT / "benchmarks").glob("*.py") if "\ndef measure(" in path.read_text()}

NUMBER = re.compile(r"[-+]?\d*\.?\d+")
FILE = re.compile(r"\]\(\.\./benchmarks/results/([^)]+\.json)\)")
INTERVAL = ("low", "high", "low_with_items", "high_with_items")


class Leaf(NamedTuple):
    words: frozenset[str]
    """All that names it: keys on the way to it, and what the records on the way are of."""
    value: Any


class Table(NamedTuple):
    source: str
    header: list[str]
    rows: list[list[str]]


def leaves(data: Any, words: frozenset[str] = frozenset(), is_record: bool = False) -> Iterator[Leaf]:
    """Yield all values of a result file with their words."""
    if isinstance(data, dict):
        if is_record:
            words |= {found for key, found in data.items() if isinstance(found, str) and key != "name"}
        if is_record and {"name", "k"} <= data.keys():
            words |= {f"{data['name']}@{data['k']}"} | ({"all"} if "value" in data and "slice" not in data else set())
            first = data["value"] if "value" in data else data["difference"]
            yield Leaf(words, [first, *(data[side] for side in INTERVAL if side in data)])
        for key, found in data.items():
            yield from leaves(found, words | {key} | set(key.split(": ")))
    elif isinstance(data, list) and data and isinstance(data[0], dict):
        for record in data:
            yield from leaves(record, words, is_record=True)
    elif isinstance(data, str):
        is_date = re.fullmatch(r"\d{4}-\d\d-\d\d", data)
        yield Leaf(words, data if is_date else [float(one) for one in NUMBER.findall(data)])
    else:
        yield Leaf(words, data if isinstance(data, bool | list) else [data])


@cache
def leaves_of(name: str) -> list[Leaf]:
    return list(leaves(json.loads(RESULTS[name].read_text())))


def words_of(cell: str) -> set[str]:
    """Return the names in backticks; where there are none, the metrics that are written as a reader says them."""
    return set(re.findall(r"`([^`]+)`", cell)) or {name.lower() for name in re.findall(r"\b(?:HR|NDCG)@\d+", cell)}


def address(table: Table, row: list[str], column: int) -> set[str]:
    """Return the words of a cell: of the line above its table, its row and its column; "a_" and "b" are the key "a_b"."""
    stems = {word for word in words_of(row[0]) if word.endswith("_")}
    heads = words_of(table.header[column])
    glued = {stem + head for stem in stems for head in heads} if stems else heads
    return words_of(table.source) | (words_of(row[0]) - stems) | glued


def find(files: list[str], wanted: set[str]) -> Any:
    """Return the value of these words in the first file that has it: of those that have them all, the one with fewest others."""
    for name in files:
        found = [leaf for leaf in leaves_of(name) if wanted <= leaf.words]
        fewest = min((len(leaf.words) for leaf in found), default=0)
        values = [leaf.value for leaf in found if len(leaf.words) == fewest]
        if values:
            assert all(value == values[0] for value in values), f"{name}: {sorted(wanted)} names {len(values)} values; name more"
            return values[0]
    raise AssertionError(f"{files}: nothing is named {sorted(wanted)}")


def check(cell: str, value: Any, header: str) -> None:
    """Compare what is printed with what was measured, to the digits that are printed."""
    if isinstance(value, bool):
        assert cell.strip("*") == ("yes" if value else "no"), f"{cell!r} in {header!r} is {value}"
        return
    if isinstance(value, str):
        assert re.sub(r"\[|\]\(.*\)", "", cell) == value, f"{cell!r} in {header!r} is {value!r}"
        return
    printed = NUMBER.findall(re.sub(r"(?<=\d),(?=\d{3})", "", re.sub(r"\]\([^)]*\)", "", cell)))
    assert printed, f"{cell!r} in {header!r} has no number"
    assert len(printed) <= len(value), f"{cell!r} in {header!r} has more numbers than {value}"
    unit = 60 if header.startswith("minutes") else 1
    for one, measured in zip(printed, value, strict=False):
        digits = len(one.partition(".")[2])
        half = 0.5 * 10**-digits + 1e-9
        assert abs(float(one) - measured / unit) <= half, f"{one} of {cell!r} in {header!r} is {measured / unit}"


def tables(page: str) -> list[Table]:
    """Return the tables of a page, each with the paragraph above it."""
    found: list[Table] = []
    above = ""
    for block in re.split(r"\n\s*\n", page):
        lines = block.strip().splitlines()
        if lines and lines[0].startswith("|"):
            header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
            found.append(Table(above, header, rows))
        above = block.strip()
    return found


def check_table(table: Table) -> int:
    """Check all cells of a table whose column has a name; returns how many."""
    checked = 0
    for row in table.rows:
        assert len(row) == len(table.header), f"{row}: another number of cells than {table.header}"
        files = FILE.findall(" ".join(row)) or FILE.findall(table.source)
        for column in range(1, len(row)):
            if row[column] in {"", "–"}:
                continue
            if words_of(table.header[column]):
                assert files, f"{row}: neither it nor the line above its table links a result file"
                check(row[column], find(files, address(table, row, column)), table.header[column])
                checked += 1
            else:
                assert not re.search(r"\d*\.\d", row[column]), f"{row[column]!r}: no name in its column {table.header[column]!r}"
    return checked


MEASURED = [table for table in tables(PAGE) if not table.source.startswith("Published:")]


@pytest.mark.parametrize("table", MEASURED, ids=lambda table: table.rows[0][0][:40])
def test_every_number_of_a_table_is_in_its_result_file(table):
    assert table.source.startswith("Numbers:"), f"the table {table.header} stands below no line that begins with Numbers:"
    assert check_table(table) >= len(table.rows)


def test_no_number_with_a_fraction_stands_outside_the_tables():
    prose = [line for line in PAGE.splitlines() if not line.startswith("|")]
    outside = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", "\n".join(prose), flags=re.DOTALL)
    assert re.findall(r"\S*(?<!\w)\d*\.\d+\S*", outside) == [], "put it into a table, where it is checked"


def test_published_numbers_are_those_of_the_figure():
    (table,) = [table for table in tables(PAGE) if table.source.startswith("Published:") and len(table.rows) == 2]
    shown = {row[0].split("]")[0].strip("["): row for row in table.rows}
    for panel in PANELS:
        for name, value in panel.published:
            assert float(shown[name][table.header.index(panel.title)]) == value


def test_every_result_file_and_every_benchmark_is_on_the_page():
    assert set(FILE.findall(PAGE)) == set(RESULTS)
    assert set(re.findall(r"\]\(\.\./benchmarks/([a-z_]+)\.py\)", PAGE)) == set(SCRIPTS)
    assert set(re.findall(r"python -m benchmarks\.([a-z_]+)$", PAGE, re.MULTILINE)) == set(SCRIPTS)
    markdown = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.md")}
    assert markdown - {path.stem for path in RESULTS.values()} == {"quality_log"} and "results/quality_log.md)" in PAGE


def benchmark_rows() -> list[tuple[str, str, Table, list[str]]]:
    """Return the rows of benchmarks that have a result: the script, the result file, the table and the row."""
    found = []
    for table in MEASURED:
        for row in table.rows:
            script, files = re.search(r"\.\./benchmarks/([a-z_]+)\.py", row[0]), FILE.findall(" ".join(row))
            if script and files:
                found.append((script[1], files[0], table, row))
    return found


def test_the_row_of_a_benchmark_names_a_file_of_its_own_and_the_right_side_of_its_bar():
    for script, file, table, row in benchmark_rows():
        result = json.loads(RESULTS[file].read_text())
        assert result["claim"] == script
        side = {"at_least": "at least", "at_most": "at most"}[result["better"]]
        assert row[table.header.index("`bar`")].startswith(side)
    of_benchmarks = {name for name in RESULTS if not name.startswith("run_")}
    assert {file for _, file, _, _ in benchmark_rows()} == of_benchmarks


def test_what_misses_its_bar_is_listed_first():
    latest = {script: file for file, script in sorted((file, script) for script, file, _, _ in benchmark_rows())}
    missed = {script for script, file in latest.items() if not json.loads(RESULTS[file].read_text())["holds"]}
    section = PAGE.split("## What does not hold")[1].split("\n## ")[0]
    assert set(re.findall(r"\.\./benchmarks/([a-z_]+)\.py", section)) == missed | (set(SCRIPTS) - latest.keys())


def test_commands_of_benchmarks_name_a_run_where_the_script_asks_for_one():
    commands = re.findall(r"^((?:\w+=\S+ )*)python -m benchmarks\.([a-z_]+)$", PAGE, re.MULTILINE)
    for variables, script in commands:
        reads_run = "DIGR_RUN" in SCRIPTS[script]
        assert ("DIGR_RUN=" in variables) == reads_run, script


ONE = "run_industrial_ranked_2-cores-x86-64_2026-11-30.json"
LINE = f"Numbers: `metrics`, `test`, `all`, of [run](../benchmarks/results/{ONE})."


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("| ranked `ranked` | .142 [.129, .153] |", r"\.142 of .* is 0\.14118"),
        ("| ranked `ranked` | .141 [.129, .154] |", r"\.154 of .* is 0\.152"),
        ("| ranked `rankd` | .141 |", "nothing is named"),
        ("| ranked | .141 |", r"names \d+ values; name more"),
        ("| ranked `ranked` | high |", "has no number"),
    ],
)
def test_a_wrong_number_or_name_is_found(row, message):
    (table,) = tables(f"{LINE}\n\n| system | NDCG@10 |\n|---|---|\n{row}\n")
    with pytest.raises(AssertionError, match=message):
        check_table(table)


def test_a_right_number_is_accepted_and_a_number_without_a_name_is_not():
    (table,) = tables(
        f"{LINE}\n\n| system | NDCG@10 | HR@50 |\n|---|---|---|\n| **ranked** `ranked` | .141 [.129, .153] | .317 |\n"
    )
    assert check_table(table) == 2
    (table,) = tables(f"{LINE}\n\n| system | gain |\n|---|---|\n| **ranked** `ranked` | .141 |\n")
    with pytest.raises(AssertionError, match=r"'\.141': no name in its column 'gain'"):
        check_table(table)
