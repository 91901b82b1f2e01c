"""An artifact exists only when it is complete, and says why it is stale."""

import pyarrow as pa
import pytest

from digr import artifacts
from digr.artifacts import Manifest, StaleArtifact, Store


def _items(*ids: str) -> pa.Table:
    return pa.table({"item_id": list(ids), "title": [f"item {item}" for item in ids]})


def test_an_artifact_without_a_manifest_does_not_exist(tmp_path):
    store = Store(str(tmp_path))
    artifacts.write_table(store, "items", _items("a", "b"))
    assert artifacts.read_manifest(store, "items") is None
    with pytest.raises(ValueError, match=r"artifact items does not exist; run `digr data prepare CONFIG`"):
        artifacts.read_table(store, "items")


def test_a_table_reads_back_with_the_columns_the_schema_adds(tmp_path):
    store = Store(str(tmp_path))
    artifacts.write_table(store, "items", _items("a", "b"))
    artifacts.commit(store, Manifest(name="items", rows=2))
    table = artifacts.read_table(store, "items", item_id=["b", "c"])
    assert table.to_pylist() == [
        {
            "item_id": "b",
            "title": "item b",
            "description": None,
            "brand": None,
            "categories": None,
            "price": None,
            "currency": None,
            "image_uri": None,
        }
    ]


def test_duplicate_keys_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"duplicate key item_id='a' \(1 keys occur more than once\)"):
        artifacts.write_table(Store(str(tmp_path)), "items", _items("a", "b", "a"))


def test_a_wrong_type_is_an_error_and_not_a_cast(tmp_path):
    wrong = pa.table({"item_id": [1, 2], "title": ["x", "y"]})
    with pytest.raises(ValueError, match="column item_id: expected string, found int64"):
        artifacts.write_table(Store(str(tmp_path)), "items", wrong)


def test_a_missing_column_is_named(tmp_path):
    with pytest.raises(ValueError, match="table items lacks column title; found item_id"):
        artifacts.write_table(Store(str(tmp_path)), "items", pa.table({"item_id": ["a"]}))


def test_begin_removes_what_was_there(tmp_path):
    store = Store(str(tmp_path))
    artifacts.write_table(store, "items", _items("a"))
    artifacts.commit(store, Manifest(name="items"))
    artifacts.begin(store, "items")
    assert list((tmp_path / "items").iterdir()) == []


def test_a_stale_artifact_names_what_differs_and_the_command(tmp_path):
    store = Store(str(tmp_path))
    artifacts.begin(store, "item_sids")
    artifacts.commit(
        store, Manifest(name="item_sids", config={"sids": {"lr": 0.1, "epochs": 3}}, inputs={"item_embeddings": "aa"})
    )
    same = Manifest(name="item_sids", config={"sids": {"lr": 0.1, "epochs": 3}}, inputs={"item_embeddings": "aa"})
    assert artifacts.is_current(store, same)
    other = same.model_copy(update={"config": {"sids": {"lr": 0.2, "epochs": 3}}, "inputs": {"item_embeddings": "bb"}})
    with pytest.raises(StaleArtifact, match=r"different: input item_embeddings, config sids\.lr\); run `digr sids build CONFIG"):
        artifacts.is_current(store, other)


def test_variants_share_what_comes_before_the_embeddings():
    store = Store("runs/x", "without_interests")
    assert store.uri("interests") == "runs/x/interests"
    assert store.uri("item_sids") == "runs/x/variants/without_interests/item_sids"
    assert store.uri("recommendations/sft_test") == "runs/x/variants/without_interests/recommendations/sft_test"


def test_a_table_is_filtered_by_a_column_called_name(tmp_path):
    row = {"system": "a", "split": "test", "slice": "all", "k": 10, "value": 0.5, "low": 0.4, "high": 0.6, "num_examples": 9}
    store = Store(str(tmp_path))
    artifacts.write_table(store, "metrics", pa.Table.from_pylist([row | {"name": "hr"}, row | {"name": "ndcg"}]))
    artifacts.commit(store, Manifest(name="metrics", rows=2))
    assert artifacts.read_table(store, "metrics", name=["ndcg"])["name"].to_pylist() == ["ndcg"]


def test_what_may_change_in_mid_build_does_not_change_the_request():
    one, two = (Manifest(name="items", config={"train": {"num_workers": num, "precision": "fp32"}}) for num in (1, 2))
    assert one.request != two.request
    assert one.without(["train.num_workers"]).request == two.without(["train.num_workers"]).request
    assert one.without(["train.precision"]).request != two.without(["train.precision"]).request


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 3), (2, 7), (3, 6), (5, None), (9, None), (4, 4)])
def test_a_range_of_rows_is_streamed_across_parts_and_batches(tmp_path, start, stop):
    store = Store(str(tmp_path))
    folder = tmp_path / "items"
    for number, ids in enumerate(("abc", "defg", "hi")):
        artifacts.write_table(store, "items", pa.table({"item_id": list(ids), "title": list(ids)}))
        (folder / "part-00000.parquet").rename(folder / f"part-{number + 1}.parquet")
    artifacts.commit(store, Manifest(name="items", rows=9))
    batches = artifacts.iter_table(store, "items", ["item_id"], batch_rows=2, start=start, stop=stop)
    assert "".join(item for batch in batches for item in batch["item_id"].to_pylist()) == "abcdefghi"[start:stop]


def test_what_was_made_from_an_input_that_was_made_anew_is_refused_with_both_digests_and_the_command(tmp_path):
    store = Store(str(tmp_path), "plain")
    for name in ("item_sids", "policy_examples"):
        artifacts.begin(store, name)
        artifacts.commit(store, Manifest(name=name))
    inputs = {name: artifacts.require(store, name).digest for name in ("item_sids", "policy_examples")}
    artifacts.begin(store, "policy_sft")
    artifacts.commit(store, Manifest(name="policy_sft", inputs=inputs | {"file table.json": "0", "items": "gone"}))
    artifacts.check_lineage(store, "policy_sft")
    artifacts.commit(store, Manifest(name="item_sids", rows=7))
    message = (
        f"policy_sft: made from item_sids {inputs['item_sids']}, but .*variants/plain/item_sids is now .*; run `digr train sft"
    )
    for where, name in ((store, "policy_sft"), (Store(str(tmp_path)), "variants/plain/policy_sft")):
        with pytest.raises(ValueError, match=message):
            artifacts.check_lineage(where, name)
    artifacts.check_lineage(store, "policy_sft", ["policy_examples"])
