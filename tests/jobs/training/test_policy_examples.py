"""Which interests the examples of the policy's text tasks may use."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import Config, apply_overrides, build_config
from digr.config.run import SyntheticConfig
from digr.data.ids import build_id_index
from digr.data.synthetic import build_shop
from digr.interests.item_lines import ItemLines
from digr.interests.prompts import interests_known, user_requests
from jobs.training.policy_data import read_prompts
from jobs.training.policy_examples import build_examples
from tests.data.prepared import build_histories
from tests.nested_interests import nest_rows

pytestmark = pytest.mark.ray

NUM_USERS = 60


def _commit(store: Store, name: str, table: pa.Table, **facts: object) -> None:
    artifacts.write_table(store, name, table)
    artifacts.commit(store, Manifest(name=name, rows=len(table), facts=facts))


def _make_run(folder: Path, split: str) -> tuple[Config, Store, dict[str, str]]:
    """A shop whose users each have one interest, a phrase of their own; also the text that each user was mined from."""
    store = Store(str(folder))
    shop = build_shop(SyntheticConfig(num_items=60, num_users=NUM_USERS, num_interests=4), 0)
    histories = build_histories(shop.interactions, split, max_history=4).table
    ids, titles = shop.items["item_id"].to_pylist(), shop.items["title"].to_pylist()
    requests = user_requests(histories, ItemLines(build_id_index(pa.array(ids)), pa.array(titles)), "", 100_000)
    texts = dict(zip(requests["owner_id"].to_pylist(), requests["text"].to_pylist(), strict=True))
    rows = [{"owner": "user", "owner_id": user, "interest": f"needs of {user}", "label": 1} for user in texts]
    users = histories["user_id"].unique().to_pylist()
    _commit(store, "items", shop.items)
    _commit(store, "histories", histories)
    _commit(store, "interest_labels", nest_rows("interest_labels", rows, ids, users))
    codes = pa.array([[index % 8, index // 8] for index in range(len(ids))], pa.list_(pa.int32()))
    _commit(store, "item_sids", pa.table({"item_id": ids, "codes": codes}), level_sizes=[8, 8])
    sections = {"run": {"dir": store.root}, "data": {"max_history": 4}, "policy": {"backbone": "hf", "base": "x"}}
    sections |= {"interests": {"owners": ["item", "user"]}, "train": {"num_workers": 1}}
    return build_config(sections, where="test"), store, texts


@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
def test_no_user_interest_was_mined_from_a_text_that_holds_its_target_or_a_held_out_item(tmp_path, split, ray_local):
    """Users were mined from all their training items, and the last, or an earlier one, was what the policy had to find."""
    config, store, texts = _make_run(tmp_path, split)
    histories = artifacts.read_table(store, "histories")
    items = artifacts.read_table(store, "items", ["item_id", "title"]).to_pydict()
    titles = dict(zip(items["item_id"], items["title"], strict=True))
    made = build_examples(config, store)
    artifacts.commit(store, Manifest(name="policy_examples", rows=made.rows))
    examples = artifacts.read_table(store, "policy_examples").to_pylist()
    shown = [row for row in examples if row["task"] == "user_interest_to_sid"]
    assert len(shown) == len({row["user_id"] for row in shown}) == len(texts) > 30
    rows = histories.to_pylist()
    last = {row["user_id"]: row for row in rows if row["split"] == "train"}
    for row in shown:
        assert row["prompt"] == f"User interests: needs of {row['user_id']}\nItem: "
        assert row["target"] == last[row["user_id"]]["target"]
    later = [row for row in rows if row["split"] != "train" and row["user_id"] in texts]
    # an item that was chosen before may be chosen again
    again = [row["target"] in last[row["user_id"]]["history"] for row in shown + later]
    seen = [titles[row["target"]] in texts[row["user_id"]].split("\n") for row in shown + later]
    assert seen == again and sum(seen) < len(seen) / 2


@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
def test_prompts_show_interests_from_the_last_training_target_on_and_nothing_else_changes(tmp_path, split, ray_local):
    """User interests reached one task in words, and no prompt that the policy decodes from."""
    config, store, texts = _make_run(tmp_path, split)
    _, plain = build_examples(config, store), artifacts.open_parts(store.uri("policy_examples")).to_table().to_pylist()
    config = apply_overrides(config, {"policy.prompt_interests": 2})
    _, made = build_examples(config, store), artifacts.open_parts(store.uri("policy_examples")).to_table().to_pylist()
    added = {row["user_id"]: row for row in made if row["task"] == "interest_history_to_sid"}
    validation = [row for row in made if row["split"] == "valid"]
    assert added.keys() == texts.keys() and all(
        row["prompt"].startswith("User") == (row["user_id"] in texts) for row in validation
    )

    def without(row: dict) -> dict:
        shown = f"User interests: needs of {row['user_id']}\n<"
        return row | {"prompt": row["prompt"].replace(shown, "<")}

    # training sequences and the other tasks are as they were
    assert [without(row) for row in made if row["user_id"] not in added or row != added[row["user_id"]]] == plain
    assert all(row == without(row) for row in made if row["task"] == "sequence" and row["split"] == "train")

    artifacts.begin(store, "policy_sft")
    artifacts.commit(store, Manifest(name="policy_sft", config=config.model_dump(mode="json")))
    with pytest.raises(ValueError, match=r"policy\.prompt_interests = 1, but the prompts of .*policy_sft had 2; set it to 2"):
        read_prompts(apply_overrides(config, {"policy.prompt_interests": 1}), store, "train")
    rows = {row["example_id"]: row for row in artifacts.read_table(store, "histories").to_pylist()}
    last = {row["user_id"]: row["example_id"] for row in rows.values() if row["split"] == "train"}
    titles = dict(zip(*artifacts.read_table(store, "items", ["item_id", "title"]).to_pydict().values(), strict=True))
    for part in ("train", "valid"):
        prompts = read_prompts(config, store, part).take_all()
        assert [row["example_id"] for row in prompts] == [name for name, row in rows.items() if row["split"] == part]
        for row in prompts:
            user, name = row["user_id"], row["example_id"]
            known = user in texts and (part == "valid" or last[user] == name)
            assert row["prompt"].startswith(f"User interests: needs of {user}\n<a_") == known
            if known:
                again = row["target"] in rows[last[user]]["history"]
                assert (titles[row["target"]] in texts[user].split("\n")) == again
            if known and part == "train":
                assert row["prompt"] == added[user]["prompt"] and row["completion"] == added[user]["completion"]


def test_a_prompt_may_show_user_interests_from_the_last_training_target_on():
    users, splits = list("uuuuvvw"), ["train", "train", "valid", "test", "train", "test", "train"]
    rows = pa.table({"user_id": users, "split": splits})
    assert interests_known(rows).tolist() == [False, True, True, True, True, True, True]
    assert np.array_equal(interests_known(rows.slice(0, 0)), np.zeros(0, bool))
