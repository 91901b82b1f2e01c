"""What is loaded is what was made together, on every replica: mixed and rebuilt runs are refused, promotions ask everyone."""

import asyncio
import os
import time

import pytest

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.serving.state import LocalState
from serve.items.catalogue import check_run
from serve.replicas.loaded import FRESH_SECONDS, KEPT_SECONDS, TELL_SECONDS, Replicas
from serve.settings import AppArguments, LiveSettings, VersionSettings
from tests.serve.tiny_run import BEAM_WIDTH, serve_without_ray, write_canonical, write_run


def _change(store: Store, name: str, **update) -> str:
    """Change a manifest; return its digest."""
    found = artifacts.read_manifest(store, name) or Manifest(name=name)
    artifacts.commit(store, found.model_copy(update=update))
    return artifacts.require(store, name).digest


def test_a_policy_that_does_not_say_what_it_was_trained_on_is_not_served(tmp_path):
    store = write_run(str(tmp_path))
    _change(store, "policy_sft", inputs={})
    with pytest.raises(ValueError, match=r"its manifest does not say on which item_sids .*digr train sft CONFIG"):
        check_run(VersionSettings(run_dir=store.root))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("policy_sft", "item_sids"),
        ("item_sids", "item_embeddings"),
        ("item_embeddings", "items"),
        ("interest_labels", "items"),
        ("canonical_interests", "interest_labels"),
        ("ranking_index", "interest_labels"),
        ("ranker", "ranking_index"),
    ],
)
def test_a_part_that_was_made_from_another_build_is_a_failed_version(tmp_path, name, source):
    store = write_run(str(tmp_path))
    write_canonical(store)
    for of_ranker in ("ranking_index", "ranker"):
        artifacts.begin(store, of_ranker)
        artifacts.commit(store, Manifest(name=of_ranker))
    version = VersionSettings(run_dir=store.root)
    if name == "item_sids":
        _change(store, "quantiser", inputs={"item_embeddings": "0123456789abcdef"})
    digest = _change(store, name, inputs={source: "0123456789abcdef"})
    if name == "item_sids":
        _change(store, "policy_sft", inputs={"item_sids": digest})
    if name in ("item_embeddings", "ranking_index"):  # what was made from it follows
        _change(store, "item_sids" if name == "item_embeddings" else "ranker", inputs={})
    with pytest.raises(ValueError, match=rf"{name}: made from {source} 0123456789abcdef, but .*{source} is now "):
        check_run(version)


def test_a_ranker_from_another_build_does_not_matter_where_none_is_served(tmp_path):
    store = write_run(str(tmp_path))
    artifacts.begin(store, "ranker")
    artifacts.commit(store, Manifest(name="ranker", inputs={"items": "0123456789abcdef"}))
    with pytest.raises(ValueError, match="ranker: made from items"):
        check_run(VersionSettings(run_dir=store.root))
    check_run(VersionSettings(run_dir=store.root, ranker="off"))


def test_a_quantiser_of_other_semantic_ids_is_refused(tmp_path):
    store = write_run(str(tmp_path))
    _change(store, "quantiser", inputs={"item_embeddings": "0123456789abcdef"})
    with pytest.raises(ValueError, match=r"quantiser: made from .*0123456789abcdef.*digr sids build CONFIG"):
        check_run(VersionSettings(run_dir=store.root))


def test_a_mixed_version_fails_and_the_others_go_on(tmp_path):
    good, mixed = write_run(str(tmp_path / "good")), write_run(str(tmp_path / "mixed"))
    _change(mixed, "item_sids", seed=7)
    models = {"good": VersionSettings(run_dir=good.root), "mixed": VersionSettings(run_dir=mixed.root)}
    client = serve_without_ray(AppArguments(models=models, beam_width=BEAM_WIDTH, max_pending=1))
    assert "policy_sft: made from item_sids" in client.get("/v1/models").json()["failed"]["mixed"]
    asked = client.post("/v1/recommend", json={"history": ["item01"], "model": "mixed"})
    assert (asked.status_code, asked.json()["type"]) == (404, "unknown-model")


def test_a_run_that_is_built_again_in_place_is_refused_and_the_loaded_build_goes_on(tmp_path):
    store = write_run(str(tmp_path))
    client = serve_without_ray(AppArguments(run_dir=store.root, beam_width=BEAM_WIDTH, max_pending=1))
    before = client.get("/v1/models").json()["data"][0]["policy_digest"]
    _change(store, "policy_sft", seed=8)
    live = LiveSettings(models={"main": VersionSettings(run_dir=store.root)})
    asyncio.run(client.service.configure(live))
    reply = client.get("/v1/models").json()
    assert "was built again in place while it is served" in reply["failed"]["main"]
    assert "build every run in a folder of its own" in reply["failed"]["main"]
    assert reply["data"][0]["policy_digest"] == before
    assert client.post("/v1/recommend", json={"history": ["item01"]}).status_code == 200


def test_a_run_that_changes_while_it_is_read_is_not_loaded(tmp_path, monkeypatch):
    from serve import service

    store, read = write_run(str(tmp_path)), service.read_run

    def slowly(*arguments):
        tables = read(*arguments)
        _change(store, "interest_labels", seed=8)
        return tables

    monkeypatch.setattr(service, "read_run", slowly)
    with pytest.raises(ValueError, match="was built again while it was read"):
        serve_without_ray(AppArguments(run_dir=store.root, beam_width=BEAM_WIDTH, max_pending=1))


@pytest.fixture(scope="module")
def models(tiny_run, tmp_path_factory):
    other = write_run(str(tmp_path_factory.mktemp("other")), seed=5)
    return {"a": VersionSettings(run_dir=tiny_run.root), "b": VersionSettings(run_dir=other.root)}


def _arguments(models, folder, **more) -> AppArguments:
    common = {
        "beam_width": BEAM_WIDTH,
        "max_pending": 1,
        "state_dir": str(folder),
        "follow_seconds": 0.01,
        "promote_seconds": 0.05,
    }
    return AppArguments(models=models, **common | more)


def _promote(client, name: str):
    return client.post("/v1/models", json={"action": "promote", "model": name})


def test_a_version_that_a_live_replica_lacks_is_not_promoted_until_it_has_it(models, tmp_path):
    one = serve_without_ray(_arguments(models, tmp_path), "one")
    two = serve_without_ray(_arguments({"a": models["a"]}, tmp_path), "two")
    refused = _promote(one, "b")
    assert (refused.status_code, refused.json()["type"]) == (409, "not-loaded-everywhere")
    assert refused.json()["detail"] == "'b' is not loaded on two after 0.05 s; see `failed` of GET /v1/models there"
    assert one.get("/healthz").json()["model"] == "a"
    assert not (tmp_path / "default").exists()
    asyncio.run(two.service.configure(LiveSettings(models=models)))
    assert _promote(one, "b").status_code == 200


def test_a_promotion_waits_for_a_replica_that_is_loading(models, tmp_path):
    one = serve_without_ray(_arguments(models, tmp_path, promote_seconds=300), "one")
    two = serve_without_ray(_arguments({"a": models["a"]}, tmp_path), "two")
    rounds = []
    follow = one.service.follow

    async def follow_and_load() -> None:
        rounds.append(1)
        if len(rounds) == 3:
            await two.service.configure(LiveSettings(models=models))
        await follow()

    one.service.follow = follow_and_load
    assert _promote(one, "b").status_code == 200
    assert len(rounds) >= 3


def test_another_build_of_the_same_name_is_not_the_version(models, tmp_path):
    one = serve_without_ray(_arguments(models, tmp_path), "one")
    serve_without_ray(_arguments({"a": models["a"], "b": models["a"]}, tmp_path), "two")
    assert "is not loaded on two" in _promote(one, "b").json()["detail"]


def test_a_replica_that_is_gone_does_not_hold_up_a_promotion(models, tmp_path):
    one = serve_without_ray(_arguments(models, tmp_path), "one")
    serve_without_ray(_arguments({"a": models["a"]}, tmp_path), "two")
    told = tmp_path / "replicas" / "two.json"
    aged = time.time() - FRESH_SECONDS - 1
    os.utime(told, (aged, aged))
    assert _promote(one, "b").status_code == 200
    aged = time.time() - KEPT_SECONDS - 1
    os.utime(told, (aged, aged))
    assert _promote(one, "a").status_code == 200
    assert not told.exists()


def test_a_replica_tells_again_before_it_counts_as_gone_and_at_every_change(tmp_path):
    now = [0.0]
    replicas, told = Replicas(LocalState(tmp_path), "one", lambda: now[0]), tmp_path / "replicas" / "one.json"

    def tells(versions: dict[str, str]) -> bool:
        told.unlink(missing_ok=True)
        replicas.tell(versions)
        return told.exists()

    assert TELL_SECONDS < FRESH_SECONDS / 3
    assert [tells({"a": "1"}), tells({"a": "1"}), tells({"a": "2"}), tells({"a": "2"})] == [True, False, True, False]
    now[0] = TELL_SECONDS
    assert [tells({"a": "2"}), tells({"a": "2"})] == [True, False]


def test_a_broken_file_of_a_replica_lacks_every_version_and_stops_nothing(models, tmp_path):
    one = serve_without_ray(_arguments(models, tmp_path), "one")
    (tmp_path / "replicas" / "two.json").write_bytes(b"\xff{")
    assert "is not loaded on two" in _promote(one, "b").json()["detail"]
