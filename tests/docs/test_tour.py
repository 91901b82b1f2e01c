"""The tour names code that exists, quotes it as it stands, and passes every job of a run in the order of its plan."""

import ast
import re
from datetime import UTC, datetime
from functools import cache
from itertools import groupby
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from digr.config import load_config
from digr.config.run import SyntheticConfig
from digr.data.importing.writing import import_data
from digr.data.synthetic import build_shop
from jobs.pipeline import plan

ROOT = Path(__file__).resolve().parent.parent.parent
TOUR = (ROOT / "docs" / "tour.md").read_text()
FENCE = "```sage\n"
"""Quotations are marked by another name that highlighters have for Python: blocks of `python` in the documentation are run."""
STOP = re.compile(rf"^`([\w/]+\.py)`, `([\w.]+)`(?: · job `(\w+)`)?\n\n{FENCE}(.*?)^```$", re.MULTILINE | re.DOTALL)
LEFT_OUT = "..."
KNIFE = "S05HMXQ"


def _lines(text: str) -> list[str]:
    """Lines that are not blank, with single spaces."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


@cache
def _source_of(path: Path, symbol: str) -> str | None:
    """The source of a function, method or class of a file; None where there is none."""
    text = path.read_text()
    body: list[ast.stmt] = ast.parse(text).body
    found: ast.stmt | None = None
    for name in symbol.split("."):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        found = next((node for node in body if isinstance(node, kinds) and node.name == name), None)
        if found is None:
            return None
        body = found.body
    return ast.get_source_segment(text, found)


def _stands_in(quoted: list[str], source: list[str]) -> str | None:
    """The first quoted line that does not follow in the source; lines may be missing only where the quotation says so."""
    place, gap = 0, True
    for line in quoted:
        if line == LEFT_OUT:
            gap = True
            continue
        here = source[place:] if gap else source[place : place + 1]
        if line not in here:
            return line
        place, gap = place + here.index(line) + 1, False
    return None


def problems(tour: str) -> list[str]:
    """What is wrong with a tour."""
    stops, found = STOP.findall(tour), []
    if len(stops) != tour.count(FENCE):
        found.append("a quotation without its file and symbol")
    for file, symbol, _, block in stops:
        quoted = _lines(block)
        source = _source_of(ROOT / file, symbol) if (ROOT / file).is_file() else None
        if source is None:
            found.append(f"{file}, {symbol}: does not exist")
        elif (line := _stands_in(quoted, _lines(source))) is not None:
            found.append(f"{file}, {symbol}: {line!r} does not stand there")
        if not 2 <= sum(line != LEFT_OUT for line in quoted) <= 8:
            found.append(f"{file}, {symbol}: quotes too little or too much")
    for symbol, file in re.findall(r"`(\w+)` in `([\w/]+\.py)`", tour):
        if not (ROOT / file).is_file() or _source_of(ROOT / file, symbol) is None:
            found.append(f"{file}, {symbol}: does not exist")
    found += [f"{file}: does not exist" for file in re.findall(r"`([\w/]+\.py)`", tour) if not (ROOT / file).is_file()]
    config = load_config(ROOT / "configs" / "quickstart.toml", ["towers.enabled=true"])
    jobs = [step.job for step in plan(config) if not step.config.run.variant]
    visited = [job for job, _ in groupby(stop[2] for stop in stops if stop[2])]
    if visited != jobs:
        found.append(f"jobs {visited} are visited, the plan has {jobs}")
    return found


def test_the_tour_is_of_the_code_as_it_is():
    assert problems(TOUR) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("        word = codebook[code]\n", "        word = codebook[codes]\n", "'word = codebook[codes]' does not stand there"),
        ("    ...\n    made = build", "    made = build", "'made = build(store, work)' does not stand there"),
        ("`quantise_residual`", "`quantize_residual`", "quantize_residual: does not exist"),
        ("digr/sids/rkmeans.py", "digr/sids/kmeans.py", "digr/sids/kmeans.py, quantise_residual: does not exist"),
        ("`prepare` in", "`prepares` in", "digr/data/preparing.py, prepares: does not exist"),
        (" · job `train_towers`", "", "are visited"),
        ("job `embed_items`", "job `evaluate`", "are visited"),
        ("`digr/evaluation/metrics.py`, `rank_gains`", "`rank_gains`", "a quotation without its file and symbol"),
    ],
)
def test_a_tour_of_other_code_is_noticed(old, new, problem):
    assert old in TOUR
    assert problem in "\n".join(problems(TOUR.replace(old, new)))


def test_lines_in_another_order_are_noticed():
    first, second = "        code = nearest_code(residual, codebook)\n", "        word = codebook[code]\n"
    assert first + second in TOUR
    assert "does not stand there" in "\n".join(problems(TOUR.replace(first + second, second + first)))


def test_stops_are_counted_from_one():
    numbers = [int(number) for number in re.findall(r"^## (\d+)\. ", TOUR, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert f"has {len(numbers)} stops" in TOUR


def test_the_rows_of_the_tour_are_imported_as_an_item_of_the_embedded_shop(tmp_path):
    for name, text in re.findall(r'```csv title="(\w+\.csv)"\n(.*?)```', TOUR, re.DOTALL):
        (tmp_path / name).write_text(text)
    files = [str(tmp_path / name) for name in ("products.csv", "orders.csv")]
    import_data(files, str(tmp_path / "data"), lambda line: None)
    items, orders = (pq.read_table(tmp_path / "data" / f"{name}.parquet").to_pylist() for name in ("items", "interactions"))
    shop = build_shop(SyntheticConfig(), seed=0)
    planted = [row for row in shop.items.to_pylist() if row["item_id"] == KNIFE]
    assert items == [{name: value for name, value in planted[0].items() if name != "image_uri"}]
    time = datetime(2023, 7, 6, 21, 20, 18, 962_000, tzinfo=UTC)
    assert orders == [{"user_id": "U001100", "item_id": KNIFE, "timestamp": time}]
    chosen = [row for row in shop.interactions.to_pylist() if row["user_id"] == "U001100"]
    assert [row["item_id"] for row in chosen] == ["S00ESAT", "S0LHYBU", "S0242NM", "S034QJH", "S04X165", KNIFE]
    assert chosen[-1]["timestamp"] == time
    interests = [row["interest"] for row in shop.planted.to_pylist() if row["item_id"] == KNIFE]
    assert interests == ["small balcony gardening", "tropical fish keeping"]
