"""A benchmark prints one JSON line last and writes a result that says what it stands on."""

import json

import pytest

from benchmarks.harness import Measurement, main


def _measure(quick: bool) -> Measurement:
    return Measurement(figures={"ours_seconds": 1.0 if quick else 2.0, "peer_seconds": 4.0}, ratio=0.5, bar=0.8)


@pytest.mark.parametrize(("ratio", "better", "holds"), [(0.8, "at_most", True), (0.9, "at_most", False), (0.9, "at_least", True)])
def test_a_claim_holds_on_the_right_side_of_its_bar(ratio, better, holds):
    assert Measurement({}, ratio=ratio, bar=0.8, better=better).holds is holds


def test_the_last_line_is_json_with_everything_a_reader_needs(capsys, tmp_path):
    main(_measure, ["--quick"], tmp_path)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["claim"] == "test_harness"
    assert line["figures"] == {"ours_seconds": 1.0, "peer_seconds": 4.0}
    assert (line["ratio"], line["bar"], line["holds"], line["quick"]) == (0.5, 0.8, True, True)
    assert line["command"] == "python -m benchmarks.test_harness --quick"
    assert {"hardware", "versions", "date", "commit"} <= line.keys()


def test_quick_writes_no_result(tmp_path):
    main(_measure, ["--quick"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_run_writes_json_and_markdown_named_by_claim_hardware_and_date(tmp_path):
    result = main(_measure, [], tmp_path)
    markdown, data = sorted(tmp_path.iterdir(), key=lambda path: path.suffix, reverse=True)
    assert json.loads(data.read_text()) == result
    assert data.stem == markdown.stem
    assert data.stem.startswith("test_harness_")
    assert data.stem.endswith(result["date"])
    assert "Ratio 0.5 (the claim needs at most 0.8): **holds**" in markdown.read_text()
    assert "| ours_seconds | 2.0 |" in markdown.read_text()
