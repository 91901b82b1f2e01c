"""The command prints the measures of a store and its summary, and its mistakes name what to do."""

import json

import pyarrow.parquet as pq
import pytest

from jobs import evaluate_online
from tests.evaluation.test_online import HOUR, happened, shown, write

LISTS = [shown(f"r{n}", n, [("a", ["repeats"], "tea"), ("b", ["popular"], None)], user_id=f"u{n}") for n in range(4)]
EVENTS = [happened("e0", 5, "a", user_id="u0"), happened("e1", 2 * HOUR, "b", user_id="u1", type="purchase")]


def _run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[dict, str]:
    with pytest.raises(SystemExit) as exit:
        evaluate_online.main(arguments)
    assert exit.value.code == code
    printed = capsys.readouterr().out
    return json.loads(printed.strip().splitlines()[-1]), printed


def test_a_store_is_measured_printed_and_written(tmp_path, capsys):
    store, out = write(tmp_path / "store", LISTS, EVENTS), str(tmp_path / "out.parquet")
    summary, printed = _run(capsys, store, "--ks", "2,1", "--out", out, "--resamples", "50")
    assert summary["counts"] == {"lists": 4, "events": 2, "named": 0, "by_user": 2}
    values = {(row["by"], row["slice"], row["name"], row["k"]): row["value"] for row in summary["metrics"]}
    assert values["all", "all", "hr", 1] == 0.25
    assert values["all", "all", "hr", 2] == 0.5
    assert values["source", "popular", "hr", 2] == 0.25
    assert values["interest", "tea", "hr", 1] == 0.25
    assert pq.read_table(out).to_pylist() == summary["metrics"]
    assert "all       all                              hr@2       0.5000" in printed


def test_window_and_types_are_chosen(tmp_path, capsys):
    store = write(tmp_path, LISTS, EVENTS)
    for words, expected in ((["--window-hours", "1"], 0.25), (["--events", "purchase"], 0.25), (["--events", "cart"], 0.0)):
        summary, _ = _run(capsys, store, "--ks", "2", *words)
        assert summary["metrics"][0]["value"] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"no store of events; give the events_dir of the endpoint, <run>/serving/events by default"),
        (["--ks", "1,x"], r"--ks '1,x': expected whole numbers from 1 on"),
        (["--ks", "0"], r"--ks '0': expected whole numbers from 1 on"),
    ],
)
def test_a_mistake_says_what_to_do(tmp_path, capsys, arguments, message):
    summary, _ = _run(capsys, str(tmp_path), *arguments, code=2)
    assert message in summary["error"]
