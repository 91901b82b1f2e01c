"""A folder is described without a run: what is in it, what would be left out, and which choices fit."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import describe_data

TITLES = [f"A sturdy oak shelf for small kitchens, number {at}" for at in range(8)]


def _write(folder: Path, words: dict[str, str], **items: Any) -> str:
    """One user per word, one item per letter, a day between two interactions."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"item_id": list("abcdefgh"), "title": TITLES} | items
    pq.write_table(pa.table(columns), folder / "items.parquet")
    rows = [(user, item, 1_600_000_000 + 86_400 * at) for user, word in words.items() for at, item in enumerate(word)]
    users, ids, times = (list(column) for column in zip(*rows, strict=True))
    pq.write_table(pa.table({"user_id": users, "item_id": ids, "timestamp": times}), folder / "interactions.parquet")
    return str(folder)


def _run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[dict[str, Any], str]:
    with pytest.raises(SystemExit) as exit:
        describe_data.main(arguments)
    printed = capsys.readouterr().out
    assert exit.value.code == code
    return json.loads(printed.strip().splitlines()[-1]), printed


def test_what_is_there_and_what_would_be_left_out_is_counted(tmp_path, capsys):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    items = {
        "title": [*TITLES[:6], "", TITLES[7]],
        "description": ["<p>Of <b>oak</b></p>", None, "plain", "", None, None, None, None],
        "price": [1.0, 2.0, None, None, None, None, None, None],
        "currency": ["EUR", None, None, None, None, None, None, None],
        "image_file": ["good.png", "bad.png", None, None, None, None, None, None],
    }
    folder = _write(tmp_path, {"ann": "abcde", "bob": "abcbx", "cy": "ah", "dee": "bcdeg"}, **items)
    summary, printed = _run(capsys, folder)
    facts = summary["facts"]
    assert (facts["users"], facts["items"], facts["interactions"]) == (4, 7, 15)
    assert {name: count for name, count in facts.items() if name.startswith("left out")} == {
        "left out: item without title": 1,
        "left out: interaction with an unknown item": 1,
        "left out: interaction with an untitled item": 1,
        "left out: user with fewer than 3 interactions": 1,
    }
    assert (facts["first_day"], facts["last_day"]) == ("2020-09-13", "2020-09-17")
    # b again in bob's history, of 15 interactions
    assert facts["repeat_rate"] == pytest.approx(1 / 15, abs=1e-6)
    assert facts["split_rows"] == {"train": 3, "valid": 3, "test": 3}
    # train holds a, b, c of ann, a, b of bob, b, c of dee; valid d, c, d; test e, b, e
    assert facts["cold_target_rate"] == {"valid": pytest.approx(2 / 3, abs=1e-6), "test": pytest.approx(2 / 3, abs=1e-6)}
    assert facts["interactions_per_user"] == {"p10": 2, "p50": 4, "p90": 5, "most": 5}
    assert facts["share_with"] == {
        "description": pytest.approx(2 / 7, abs=1e-4),
        "brand": 0,
        "categories": 0,
        "price": pytest.approx(2 / 7, abs=1e-4),
        "image_uri": pytest.approx(2 / 7, abs=1e-4),
    }
    assert facts["prices_by_currency"] == {"EUR": 1, "unknown": 1}
    assert facts["language_guess"]["en"] > 0.8
    assert facts["images_opened"] == "1 of 2 tried" and len(facts["images_not_opened"]) == 1
    assert summary["suggested"] == {"core": 2, "max_history": 10, "level_sizes": [2, 2, 2]}
    assert {row["user_id"] for row in summary["histories"]} == {"ann", "bob", "cy", "dee"}
    assert next(row["titles"] for row in summary["histories"] if row["user_id"] == "cy") == [TITLES[0], TITLES[7]]
    assert "suggested: data.core=2, data.max_history=10, sids.level_sizes=[2, 2, 2]" in printed
    assert facts["mended"] == {"description with markup": 1} and "description with markup 1" in printed


def test_choices_that_fit_are_suggested(tmp_path, capsys):
    words = {f"u{at:02d}": ("abcdefgh" * 4)[at % 8 : at % 8 + 5 + at % 20] for at in range(60)}
    summary, _ = _run(capsys, _write(tmp_path, words))
    assert (summary["suggested"]["core"], summary["suggested"]["max_history"]) == (5, 50)


def test_too_few_interactions_are_a_problem_that_is_told_and_no_failure(tmp_path, capsys):
    summary, printed = _run(capsys, _write(tmp_path, {"ann": "abc"}))
    assert "split train is empty" in summary["facts"]["problem"] and "split train is empty" in printed


def test_of_many_interactions_those_of_some_users_are_read(tmp_path, capsys, monkeypatch):
    words = {f"u{at:03d}": "abcdefgh"[at % 3 : at % 3 + 5] for at in range(400)}
    folder = _write(tmp_path, words)
    monkeypatch.setattr(describe_data, "READ_INTERACTIONS", 500)
    summary, printed = _run(capsys, folder)
    assert summary["one_user_in"] == 4 and "of 1 in 4 users" in printed
    assert 50 < summary["facts"]["users"] < 150
    assert summary["facts"]["interactions"] == 5 * summary["facts"]["users"]


def test_a_folder_that_is_not_there_is_an_error_in_the_summary(tmp_path, capsys):
    summary, _ = _run(capsys, str(tmp_path / "no"), code=2)
    assert summary["status"] == "failed" and "does not exist" in summary["error"]
