"""A benchmark prints one JSON line last, and writes a result with the machine, the versions and the commit."""

import ast
import json
from pathlib import Path

import pytest

from benchmarks.harness import RESULTS, Bar, Measurement, main

BAR = Bar(full=0.8, quick=0.4, quick_reason="start-up")
BENCHMARKS = [path for path in sorted(RESULTS.parent.glob("*.py")) if "\ndef measure(" in path.read_text()]


def _measure(quick: bool) -> Measurement:
    return Measurement(figures={"ours_seconds": 1.0 if quick else 2.0, "peer_seconds": 4.0}, ratio=0.5)


@pytest.mark.parametrize(("ratio", "better", "holds"), [(0.8, "at_most", True), (0.9, "at_most", False), (0.9, "at_least", True)])
def test_a_claim_holds_on_the_right_side_of_its_bar(ratio, better, holds):
    assert Bar(full=0.8, quick=0.8, quick_reason="", better=better).holds(ratio, quick=False) is holds


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_every_benchmark_states_the_bar_of_both_forms_and_why_the_quick_one_has_its_own(path: Path):
    # four quick forms were held to the full form's bar and printed `holds: false` on an idle machine
    tree = ast.parse(path.read_text())
    (bar,) = (node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "BAR")
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in bar.keywords}
    assert {"full", "quick", "quick_reason"} <= given.keys()
    assert len(given["quick_reason"].split()) > 2
    looser = given["quick"] <= given["full"] if given.get("better") == "at_least" else given["quick"] >= given["full"]
    assert looser or path.stem == "kmeans_residual", "a quick form that asks for more than the full one"
    assert path.read_text().endswith('if __name__ == "__main__":\n    main(measure, BAR)\n')


def test_the_quick_form_is_held_to_its_own_bar(tmp_path):
    quick, full = (main(_measure, BAR, arguments, tmp_path) for arguments in (["--quick"], []))
    assert (quick["bar"], quick["holds"], quick["bar_reason"]) == (0.4, False, "start-up")
    assert (full["bar"], full["holds"]) == (0.8, True)
    assert "bar_reason" not in full


def test_the_last_line_is_json_with_everything_a_reader_needs(capsys, tmp_path):
    main(_measure, BAR, ["--quick"], tmp_path)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["claim"] == "test_harness"
    assert line["figures"] == {"ours_seconds": 1.0, "peer_seconds": 4.0}
    assert (line["ratio"], line["bar"], line["holds"], line["quick"]) == (0.5, 0.4, False, True)
    assert line["command"] == "python -m benchmarks.test_harness --quick"
    assert {"hardware", "versions", "date", "commit"} <= line.keys()


def test_quick_writes_no_result(tmp_path):
    main(_measure, BAR, ["--quick"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_run_writes_json_and_markdown_named_by_claim_hardware_and_date(tmp_path):
    result = main(_measure, BAR, [], tmp_path)
    markdown, data = sorted(tmp_path.iterdir(), key=lambda path: path.suffix, reverse=True)
    assert json.loads(data.read_text()) == result
    assert data.stem == markdown.stem
    assert data.stem.startswith("test_harness_")
    assert data.stem.endswith(result["date"])
    assert "Ratio 0.5 (the claim needs at most 0.8): **holds**" in markdown.read_text()
    assert "| ours_seconds | 2.0 |" in markdown.read_text()
