"""Verdicts have a ledger as answers do: they are paid for once, within the budget, and the judge sees what the miner saw."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import build_config
from digr.tables import flat_interests
from jobs import label_interests
from jobs.runtime.session import Options
from tests.models.endpoint_server import serve_endpoint
from tests.nested_interests import nest_rows
from tests.rewards.judge_server import serve_judge

pytestmark = pytest.mark.ray

TITLES = {"a": "rod", "b": "reel", "c": "hat", "d": "mug"}
PHRASES = {"a": "rod care", "b": "trout evenings", "c": "nonsense", "d": "mug painting"}


def _commit(store, name, table):
    artifacts.begin(store, name)
    artifacts.write_table(store, name, table)
    artifacts.commit(store, Manifest(name=name, rows=len(table)))


@pytest.fixture
def store(tmp_path, monkeypatch, ray_local):
    """Four items, each with an interest; those of "b" and "c" were found by a miner that was shown the image."""
    monkeypatch.setenv("DIGR_TEST_KEY", "any")
    store = Store(str(tmp_path / "run"))
    Image.new("RGB", (20, 20)).save(tmp_path / "b.png")
    images = [str(tmp_path / "b.png") if item in "ab" else None for item in TITLES]
    _commit(store, "items", pa.table({"item_id": list(TITLES), "title": list(TITLES.values()), "image_uri": images}))
    miners = [["text", "vision"], ["vision"], ["vision"], ["text"]]
    found = zip(PHRASES.items(), miners, strict=True)
    rows = [{"owner_id": item, "interest": phrase, "miners": names} for (item, phrase), names in found]
    _commit(store, "interests", nest_rows("interests", rows, list(TITLES)))
    return store


def _config(store, url, judge={}, **interests):
    endpoint = {"kind": "openai", "base_url": url, "model": "m", "api_key_env": "DIGR_TEST_KEY", "max_retries": 0}
    miners = [endpoint | {"name": "text"}, endpoint | {"name": "vision", "modality": "image"}]
    labels = {"labelers": ["judge"], "judge": endpoint | judge}
    folders = [str(Path(store.root).parent)]
    tree = {
        "run": {"dir": store.root},
        "images": {"folders": folders},
        "interests": {"miners": miners} | interests,
        "labels": labels,
    }
    return build_config(tree, where="test")


def _probabilities(store):
    labels = flat_interests(artifacts.read_table(store, "interest_labels"))
    return dict(zip(labels["owner_id"].to_pylist(), labels["judge_probability"].to_pylist(), strict=True))


def test_an_interest_of_an_image_is_judged_with_the_image(store):
    with serve_judge() as server:
        label_interests.run(_config(store, server.url, {"modality": "both"}), Options())
    content = {json.dumps(body["messages"][1]["content"]): body["messages"][1]["content"] for body in server.bodies}
    with_image = [text for text, parts in content.items() if isinstance(parts, list)]
    # "a" was also found in its text, "c" has no image any more, "d" never had one
    assert len(server.bodies) == 4 and len(with_image) == 1 and "trout evenings" in with_image[0] and "image/png" in with_image[0]
    verdicts = {row["owner_id"]: row for row in artifacts.read_table(store, "interest_verdicts").to_pylist()}
    assert {item: row["modality"] for item, row in verdicts.items()} == {"a": "text", "b": "both", "c": "text", "d": "text"}
    assert verdicts["a"]["probability"] == pytest.approx(0.9) and verdicts["a"]["input_tokens"] == 100
    assert _probabilities(store) == pytest.approx({"a": 0.9, "b": 0.2, "c": None, "d": 0.9})


def test_a_judge_that_sees_no_images_is_not_asked_about_what_only_an_image_showed(store):
    with serve_judge() as server:
        label_interests.run(_config(store, server.url), Options())
    assert len(server.bodies) == 2 and _probabilities(store) == pytest.approx({"a": 0.9, "b": None, "c": None, "d": 0.9})
    rejected = {"judge: only miners with an image found it, none wrote a caption, and labels.judge.modality is text": 2}
    assert artifacts.require(store, "interest_labels").rejected == rejected


def test_a_judge_that_sees_no_images_reads_the_caption_that_the_miner_wrote(store):
    interests = artifacts.read_table(store, "interests")
    captions = pa.array([None, "trout at dusk", None, None], pa.string())
    _commit(store, "interests", interests.set_column(interests.column_names.index("caption"), "caption", captions))
    with serve_judge() as server:
        label_interests.run(_config(store, server.url), Options())
    assert len(server.bodies) == 3 and _probabilities(store) == pytest.approx({"a": 0.9, "b": 0.9, "c": None, "d": 0.9})
    assert sum("reel. Image: trout at dusk" in body["messages"][1]["content"] for body in server.bodies) == 1


def test_verdicts_outlive_a_kill_and_a_forced_run_and_only_what_is_missing_is_asked(store):
    with serve_judge() as server:
        config = _config(store, server.url, {"modality": "both"})
        label_interests.run(config, Options())
        first = artifacts.read_table(store, "interest_labels")
        assert len(server.bodies) == 4 and artifacts.require(store, "interest_labels").rejected == {"judge: unparsable": 1}
        label_interests.run(config, Options(force="all"))
        # all were paid for again: verdicts were in a folder that went with the job
        assert len(server.bodies) == 4 and artifacts.read_table(store, "interest_labels").equals(first)
        items = artifacts.read_table(store, "items").to_pydict()
        _commit(store, "items", pa.table(items | {"title": ["rod", "reel", "hat", "blue mug"]}))
        label_interests.run(config, Options(force="all"))
    assert len(server.bodies) == 5 and "blue mug" in json.dumps(server.bodies[-1])


def test_the_budget_covers_the_judge_and_its_prices(store):
    # the judge's tokens and prices were ignored: a capped run went on paying
    prices = {"modality": "both", "usd_per_million_input_tokens": 1000.0}
    with serve_judge() as server:
        with pytest.raises(ValueError, match=r"stopped at the budget: \d+ tokens and 0\.[0-9]+ USD .* requests are still to ask"):
            label_interests.run(_config(store, server.url, prices, max_usd=0.7), Options())
        asked = len(server.bodies)
        assert 1 <= asked < 4
        verdicts = artifacts.open_parts(store.uri("interest_verdicts")).to_table()
        assert verdicts["cost_usd"].to_pylist() == pytest.approx([0.1] * asked)
        label_interests.run(_config(store, server.url, prices, max_usd=5.0), Options())
    assert len(server.bodies) == 4


def test_a_judge_whose_endpoint_fails_stops_the_job_with_its_reason_and_errors_are_asked_again(store):
    with serve_endpoint("404") as server, pytest.raises(ValueError, match=r"The model `m` does not exist; check labels\.judge"):
        label_interests.run(_config(store, server.url), Options())
    assert len(server.bodies) == 1 and artifacts.read_manifest(store, "interest_labels") is None
    _commit(store, "items", pa.table({"item_id": list(TITLES), "title": ["fine", "broken", "broken", "broken"]}))
    with serve_endpoint() as server:
        config = _config(store, server.url, {"modality": "both"})
        with pytest.raises(
            ValueError, match=r"judge: 3 of 4 requests failed, .*max_failed_rate = 0\.5(.|\n)*InternalServerError"
        ):
            label_interests.run(config, Options())
    with serve_judge() as server:
        label_interests.run(_config(store, server.url, {"modality": "both"}), Options())
    assert len(server.bodies) == 3


def test_the_key_of_the_judge_is_asked_for_before_anything_starts(store, monkeypatch):
    monkeypatch.delenv("DIGR_TEST_KEY")
    with pytest.raises(ValueError, match=r"labels\.judge: environment variable DIGR_TEST_KEY is empty"):
        label_interests.run(_config(store, "http://127.0.0.1:1/v1"), Options())
