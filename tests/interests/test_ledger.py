"""The ledger: answered requests are found fast, parts appear whole, and a recording can replace it."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import build_config
from digr.data.ids import build_id_index
from digr.interests import ledger
from digr.interests.item_lines import ItemLines
from digr.interests.prompts import (
    PROMPT_VERSIONS,
    RESPONSE_SCHEMA,
    chat_messages,
    item_requests,
    request_key,
    user_requests,
)
from digr.interests.replay import open_recording, replay
from digr.tables import conform

ITEMS = conform("items", pa.table({"item_id": ["a", "b"], "title": ["Rod", "Hat"], "image_uri": ["x.png", None]}), where="test")


def _key(**changes):
    miner = {"kind": "openai", "name": "m", "base_url": "http://x/v1", "model": "x"} | changes
    config = build_config({"run": {"dir": "x"}, "interests": {"miners": [miner]}}, where="test")
    return request_key("item", config.interests.miners[0].model_dump(mode="json"))


def _digests(key, modality="text", items=ITEMS):
    return item_requests(items, key, modality, 100)["request_digest"].to_pylist()


def test_a_digest_changes_with_what_decides_the_answer_and_with_nothing_else():
    base = _digests(_key())
    assert base == _digests(_key(concurrency=2, max_retries=0, usd_per_million_input_tokens=3.0, base_url="http://y/v1"))
    assert base == _digests(_key(reasoning_effort="", extra_body={}))
    sampling = ({"temperature": 0.5}, {"max_tokens": 9}, {"reasoning_effort": "low"}, {"extra_body": {"top_p": 0.9}})
    for changed in ({"model": "y"}, {"name": "n"}, {"modality": "both"}, *sampling):
        assert not set(base) & set(_digests(_key(**changed)))
    other = ITEMS.set_column(1, "title", pa.array(["Rod", "Cap"]))
    assert [old == new for old, new in zip(base, _digests(_key(), items=other), strict=True)] == [True, False]
    images = ITEMS.set_column(ITEMS.column_names.index("image_uri"), "image_uri", pa.array(["y.png", None]))
    assert _digests(_key(), items=images) == base and _digests(_key(), "both", images)[0] != _digests(_key(), "both")[0]


PINNED = {
    "item-text-v1": "2155a72bd5b7dd97",
    "item-image-v1": "5b0e6b56ed9a84bd",
    "item-both-v1": "401d40c1f871990f",
    "user-text-v3": "c8a1b00da46f76c9",
}


def test_the_words_of_a_prompt_change_only_together_with_its_version():
    words = {
        version: artifacts.digest_of([chat_messages(owner, modality, "text", "data:x"), RESPONSE_SCHEMA])
        for (owner, modality), version in PROMPT_VERSIONS.items()
    }
    assert words == PINNED, "prompts changed: give them a new version, then pin their words"


def test_a_new_version_of_one_prompt_asks_again_what_that_prompt_asks_and_nothing_else(monkeypatch):
    text, both = _digests(_key()), _digests(_key(modality="both"), "both")
    monkeypatch.setitem(PROMPT_VERSIONS, ("item", "both"), "item-both-v9")
    assert _digests(_key()) == text
    assert not set(_digests(_key(modality="both"), "both")) & set(both)


def test_what_the_ledger_holds_is_what_was_spent_without_what_was_replayed(tmp_path):
    uri = ledger.open_ledger(Store(str(tmp_path)))
    requests = item_requests(ITEMS, _key(), "text", 100)
    for miner, cost in (("paid", 0.25), ("replayed", 9.0)):
        spent = {"response": ["x", "y"], "input_tokens": [5, 6], "output_tokens": [1, 2], "cost_usd": [cost, cost]}
        ledger.append(uri, ledger.finish_responses(ledger.raw_responses(requests, miner, "v1", "text", **spent)))
    assert ledger.spent_so_far(uri, ["replayed"]) == (14, 0.5)
    assert ledger.spent_so_far(uri) == (28, 18.5)
    assert ledger.spent_so_far(str(tmp_path / "none")) == (0, 0.0)


def _append_one_by_one(uri, numbers):
    for number in numbers:
        request = {"owner": ["item"], "owner_id": [str(number)], "request_digest": [f"{number:016x}"]}
        ledger.append(uri, ledger.finish_responses(ledger.raw_responses(pa.table(request), "m", "v1", "text", response=["x"])))


def test_small_parts_are_joined_without_losing_a_row_or_its_place(tmp_path, monkeypatch):
    uri = ledger.open_ledger(Store(str(tmp_path)))
    _append_one_by_one(uri, range(20))
    one = sum(path.stat().st_size for path in tmp_path.glob("*/*.parquet")) // 20
    monkeypatch.setattr(ledger, "_JOINED_BYTES", one * 17 + one // 2)
    before = artifacts.open_parts(uri).to_table()
    ledger.join_parts(uri)
    # seventeen fit into the first; the three behind it are too few to be worth it
    assert len(artifacts.list_parts(uri)) == 4 and artifacts.open_parts(uri).to_table().equals(before)
    _append_one_by_one(uri, range(20, 50))
    before = artifacts.open_parts(uri).to_table()
    ledger.join_parts(uri)
    assert len(artifacts.list_parts(uri)) < 20 and artifacts.open_parts(uri).to_table().equals(before)
    assert before["owner_id"].to_pylist() == [str(number) for number in range(50)]
    assert not list(tmp_path.glob("*/.draft-*"))


def test_a_user_is_shown_titles_before_its_last_training_target_in_order_the_newest_where_space_is_short():
    rows = [("u", "train", ["a"], "b"), ("u", "train", ["a", "b"], "d"), ("u", "valid", ["a", "b", "d"], "c")]
    rows += [("v", "test", ["a"], "b"), ("w", "train", [], "a")]
    histories = pa.table(dict(zip(("user_id", "split", "history", "target"), map(list, zip(*rows, strict=True)), strict=True)))
    items = ItemLines(build_id_index(pa.array(["a", "b"])), pa.array(["Rod", "Hat"]))
    assert user_requests(histories, items, "k", 100).select(["owner_id", "text"]).to_pylist() == [
        {"owner_id": "u", "text": "Rod\nHat"}
    ]
    assert user_requests(histories, items, "k", 5)["text"].to_pylist() == ["Hat"]
    with pytest.raises(ValueError, match="histories: 'b' is not among the 1 known ids; build the tables of this run again"):
        user_requests(histories, ItemLines(build_id_index(pa.array(["a"])), pa.array(["Rod"])), "k", 100)


def test_a_prompt_without_its_image_falls_back_to_text():
    shown = chat_messages("item", "image", "Rod", "data:x")
    assert [part["type"] for part in shown[1]["content"]] == ["image_url", "text"] and "Rod" not in str(shown)
    assert chat_messages("item", "image", "Rod")[1]["content"] == [{"type": "text", "text": "Product:\nRod"}]
    assert chat_messages("user", "both", "Rod")[1]["content"] == "Products chosen, oldest first:\nRod"


def test_digests_become_numbers_and_back():
    digests = pa.chunked_array([["00000000000000ff"], ["ffffffffffffffff", "0123456789abcdef"]])
    expected = [0xFF, 0xFFFFFFFFFFFFFFFF, 0x0123456789ABCDEF]
    assert ledger.digest_numbers(digests).tolist() == expected
    assert ledger.digest_numbers(digests.slice(1)).tolist() == expected[1:]
    done = np.sort(np.array(expected[1:], np.uint64))
    assert ledger.contains(done, digests).to_pylist() == [False, True, True]
    assert ledger.contains(done[:0], digests).to_pylist() == [False] * 3
    with pytest.raises(ValueError, match="expected 16 hexadecimal digits"):
        ledger.digest_numbers(pa.array(["abc"]))


def _responses(statuses):
    requests = item_requests(ITEMS, _key(), "text", 100)
    return ledger.finish_responses(ledger.raw_responses(requests, "m", "v1", "text", response=["x", "y"], status=statuses))


def test_done_requests_survive_errors_are_asked_again_and_poor_answers_only_on_demand(tmp_path):
    store = Store(str(tmp_path))
    uri = ledger.open_ledger(store)
    rows = _responses(["ok", "refused"])
    ledger.append(uri, rows)
    artifacts.commit(store, Manifest(name="interest_responses"))
    (tmp_path / "interest_responses" / ".draft-x").write_text("killed")
    assert ledger.open_ledger(store) == uri and artifacts.read_manifest(store, "interest_responses") is None
    assert [path.suffix for path in (tmp_path / "interest_responses").iterdir()] == [".parquet"]
    numbers = ledger.digest_numbers(rows["request_digest"])
    assert ledger.done_numbers(uri).tolist() == sorted(numbers.tolist())
    assert ledger.done_numbers(uri, retry_failed=True).tolist() == numbers[:1].tolist()
    assert ledger.done_numbers(str(tmp_path / "none")).tolist() == []
    # a time-out was taken for an answer, and never asked again without --force and retry_failed
    ledger.append(f"{tmp_path}/interest_responses", _responses(["error", "error"]))
    assert ledger.done_numbers(uri).tolist() == sorted(numbers.tolist())
    other = ledger.open_ledger(Store(str(tmp_path / "other")))
    ledger.append(other, _responses(["error", "empty"]))
    assert ledger.done_numbers(other).tolist() == numbers[1:].tolist()


def test_the_newest_answers_of_a_miner_are_shown(tmp_path):
    uri = ledger.open_ledger(Store(str(tmp_path)))
    for status in ("empty", "unparsable"):
        ledger.append(uri, _responses([status, "error"]))
    assert ledger.example_answers(uri, "m", failed=False) == ["unparsable (None): 'x'", "empty (None): 'x'"]
    assert ledger.example_answers(uri, "m", failed=True) == ["error (None): 'y'"] * 2
    assert ledger.example_answers(uri, "other", failed=True) == [] == ledger.example_answers(f"{uri}-none", "m", failed=True)


def test_text_that_is_no_unicode_does_not_break_the_ledger():
    requests = item_requests(ITEMS, _key(), "text", 100)
    rows = ledger.finish_responses(
        ledger.raw_responses(requests, "m", "v1", "text", response=[None, '{"interests": ["camp \\ud800 cooking"]}'])
    )
    # an endpoint's JSON may escape half a character, which no column can hold; this once stopped the job
    half = ledger.raw_responses(requests, "m", "v1", "text", response=["a \ud800", None], reason=[None, "\udfff"])
    assert half["response"].to_pylist() == ["a ?", None] and half["reason"].to_pylist() == [None, "?"]
    assert rows["status"].to_pylist() == ["empty", "ok"] and rows["reason"].to_pylist() == ["no text", None]


def _record(path, **changes):
    columns = {"owner": ["item"], "owner_id": ["a"], "miner": ["llm"], "prompt_version": ["p"], "modality": ["text"]}
    columns |= {"response": ['{"interests": ["camp cooking"]}'], "status": ["ok"]} | changes
    pq.write_table(pa.table({name: values for name, values in columns.items() if values is not None}), path)
    return str(path)


def test_a_recording_answers_by_owner_and_a_missing_owner_gets_a_row(tmp_path):
    requests = item_requests(ITEMS, "k", "text", 100)
    rows = ledger.finish_responses(replay(requests, _record(tmp_path / "r.parquet"), "mine")).to_pylist()
    assert [(row["owner_id"], row["miner"], row["status"], row["reason"], row["prompt_version"]) for row in rows] == [
        ("a", "mine", "ok", None, "p"),
        ("b", "mine", "empty", "not in the recording", ""),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": None}, "lacks column status"),
        ({"mood": ["good"]}, "has unknown column mood"),
        ({"owner_id": [7]}, "column owner_id: expected string, found int64"),
    ],
)
def test_a_recording_of_another_form_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        open_recording(_record(tmp_path / "r.parquet", **changes))


def test_a_recording_with_two_miners_of_an_owner_must_be_narrowed(tmp_path):
    requests = item_requests(ITEMS, "k", "text", 100)
    twice = {name: values * 2 for name, values in pq.read_table(_record(tmp_path / "x.parquet")).to_pydict().items()}
    path = _record(tmp_path / "r.parquet", **(twice | {"miner": ["gpt", "qwen"]}))
    with pytest.raises(ValueError, match=r"item 'a' has several rows .* choose one with recorded_miner"):
        replay(requests, path, "mine")
    assert replay(requests, path, "mine", "nobody")["status"].to_pylist() == ["empty", "empty"]
    with pytest.raises(ValueError, match="status 'fine' is none of ok"):
        replay(requests, _record(tmp_path / "y.parquet", status=["fine"]), "mine")
    with pytest.raises(ValueError, match="no Parquet file found"):
        open_recording(str(tmp_path / "absent"))
