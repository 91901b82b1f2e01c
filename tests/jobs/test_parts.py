"""The number of parts changes no result: a shop in one part and in five has the same interests, vectors and lists."""

import importlib

import numpy as np
import pyarrow as pa
import pytest

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config, load_config
from digr.tables import flat_interests
from jobs.pipeline import plan
from jobs.runtime.session import Options
from tests.tiny_models import make_text_encoder

pytestmark = pytest.mark.ray

LEFT_OUT = ("train_grpo", "evaluate")
TINY = [
    "data.synthetic.num_items=40",
    "data.synthetic.num_users=60",
    "data.synthetic.num_interests=4",
    'interests.owners=["item", "user"]',
    # a text's vector does not depend on the other texts of its batch
    "cluster.encode_batch_size=1",
    "cluster.encode_threads=1",  # other tests run beside this one
    'interests.miners=[{kind="extractive"}, {kind="extractive", name="short", max_words=2}]',
    "classifier.max_pairs=100",
    "classifier.epochs=2",
    'labels.labelers=["classifier", "behavioural"]',
    'sids.quantiser="rkmeans"',
    "sids.level_sizes=[8, 8]",
    "sids.min_usage_rate=0.1",
    "policy.hidden_dim=32",
    "policy.num_layers=1",
    "sft.epochs=2",
    "train.engine=plain",
    "train.num_workers=1",
    "ablations=[]",
    "ranking.rounds=10",
    "ranking.interest_cosines=[0.7]",
    'ranking.ablations=["generation", "text_twin"]',
]
PARTS = {"one": [], "five": ["data.items_per_part=8", "data.users_per_part=12", "cluster.encode_workers=2"]}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> dict[str, Store]:
    """Run the jobs up to the lists of the fine-tuned policy, with one part and with five."""
    encoder, made = make_text_encoder(tmp_path_factory.mktemp("encoder")), {}
    encoders = [f'{section}.name="{encoder}"' for section in ("interests.encoder", "classifier.base", "embeddings.encoder")]
    for name, overrides in PARTS.items():
        folder = str(tmp_path_factory.mktemp(name))
        config: Config = load_config("configs/quickstart.toml", [*TINY, *overrides, *encoders, f"run.dir={folder}"])
        for step in plan(config):
            if step.job not in LEFT_OUT:
                importlib.import_module(f"jobs.{step.job}").run(step.config, Options())
        made[name] = Store(folder)
    return made


def _both(stores: dict[str, Store], name: str, *columns: str) -> list[pa.Table]:
    return [artifacts.read_table(store, name, columns or None).combine_chunks() for store in stores.values()]


def test_parts_lie_side_by_side(stores):
    counts = {name: len(artifacts.list_parts(stores["five"].uri(name))) for name in ("items", "item_embeddings", "item_sids")}
    counts |= {owner: len(artifacts.list_parts(f"{stores['five'].uri('interest_labels')}/{owner}")) for owner in ("item", "user")}
    assert set(counts.values()) == {5} and len(artifacts.list_parts(stores["one"].uri("items"))) == 1
    for table in ("histories", "interactions", "recommendations/sft_test"):
        assert len(artifacts.list_parts(stores["five"].uri(table))) == 5


def test_interests_and_labels_are_the_same_in_five_parts(stores):
    one, five = _both(stores, "interests")
    assert one.equals(five)
    assert {"item", "user"} == set(flat_interests(one)["owner"].to_pylist())
    one, five = (flat_interests(table) for table in _both(stores, "interest_labels"))
    probabilities = ["probability", "classifier_probability"]  # batch sizes differ, so equal up to float rounding
    assert one.drop_columns(probabilities).equals(five.drop_columns(probabilities))
    for name in probabilities:
        np.testing.assert_allclose(one[name].to_numpy(), five[name].to_numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["item_embeddings", "item_sids", "policy_examples"])
def test_vectors_codes_and_training_rows_are_the_same_in_five_parts(stores, name):
    one, five = _both(stores, name)
    if name == "policy_examples":  # train and validation rows of each part follow each other
        key = [("example_id", "ascending"), ("prompt", "ascending")]
        one, five = one.sort_by(key), five.sort_by(key)
    assert one.equals(five)


def test_neighbours_and_canonical_interests_are_the_same_in_five_parts(stores):
    one, five = (table.sort_by([("item_id", "ascending"), ("source", "ascending")]) for table in _both(stores, "item_neighbours"))
    assert one.select(["item_id", "source"]).equals(five.select(["item_id", "source"])) and len(one) == 40 * 11
    lists = [table["neighbours"].combine_chunks() for table in (one, five)]
    assert lists[0].value_lengths().equals(lists[1].value_lengths())
    (places, weights), (places_of_five, weights_of_five) = (found.flatten().flatten() for found in lists)
    np.testing.assert_allclose(weights, weights_of_five, atol=1e-6)
    assert np.mean(places.to_numpy() == places_of_five.to_numpy()) > 0.99  # equal weights may change places
    one, five = _both(stores, "canonical_interests")
    assert one.equals(five) and len(one)


@pytest.mark.parametrize("system", ["ranked", "ranked_text_twin"])
def test_every_history_has_its_ranked_list_in_five_parts(stores, system):
    for split in ("valid", "test"):
        one, five = _both(stores, f"recommendations/{system}_{split}", "example_id", "item_ids")
        assert one["example_id"].equals(five["example_id"]) and len(one)
        assert all(len(set(items)) == len(items) == 20 for items in five["item_ids"].to_pylist())


@pytest.mark.parametrize("name", ["recommendations/sft_valid", "recommendations/sft_test"])
def test_every_history_has_its_list_in_five_parts(stores, name):
    """The lists themselves are of policies that read their training rows in another order."""
    one, five = _both(stores, name, "example_id", "item_ids")
    assert one["example_id"].equals(five["example_id"]) and len(one)
    assert one["item_ids"].combine_chunks().value_lengths().equals(five["item_ids"].combine_chunks().value_lengths())
