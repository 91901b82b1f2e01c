"""Added items and the chosen version: every replica sees them, restarts keep them, and no earlier semantic ID changes."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from digr.serving.journal import Journal
from digr.serving.state import LocalState
from serve.settings import AppArguments, LiveSettings, VersionSettings
from tests.serve.tiny_run import BEAM_WIDTH, NUM_ITEMS, serve_without_ray, write_run

NEW = {
    "item_id": "new1",
    "title": "A brass lamp",
    "categories": ["lamps"],
    "price": 9.5,
    "currency": "EUR",
    "interests": ["warm light", "interest 1"],
}


@pytest.fixture
def arguments(tiny_run, tmp_path):
    return AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH, max_pending=1, state_dir=str(tmp_path))


@pytest.fixture(scope="module")
def models(tiny_run, tmp_path_factory):
    other = write_run(str(tmp_path_factory.mktemp("other")), seed=5)
    return {"a": VersionSettings(run_dir=tiny_run.root), "b": VersionSettings(run_dir=other.root)}


def _follow(client) -> None:
    asyncio.run(client.service.follow())


def _sids(client) -> dict[str, list[int]]:
    _, run = client.service.version(None)
    ids = [f"item{index:02d}" for index in range(NUM_ITEMS)]
    return dict(zip(ids, run.trie.codes[run.facts.ids.find(ids)].tolist(), strict=True))


def test_a_new_item_is_recommendable_on_every_replica_and_after_a_restart(arguments):
    one, two = serve_without_ray(arguments, "one"), serve_without_ray(arguments, "two")
    before = _sids(one)
    added = one.post("/v1/items", json=NEW)
    assert added.status_code == 200
    assert added.json() == {"item_id": "new1", "sids": {"main": added.json()["sids"]["main"]}, "is_new": True}
    _follow(two)
    for client in (one, two, serve_without_ray(arguments, "three")):
        item = client.get("/v1/items/new1").json()
        assert item["sid"] == added.json()["sids"]["main"]
        assert (item["title"], item["categories"]) == ("A brass lamp", ["lamps"])
        assert (item["price"], item["currency"]) == (9.5, "EUR")
        assert item["interests"] == ["warm light", "interest 1"]
        reply = client.post("/v1/recommend", json={"history": ["item01"], "allow": {"categories": ["lamps"]}}).json()
        assert [(item["item_id"], item["reasons"]) for item in reply["items"]] == [("new1", ["interest 1"])]
        assert client.post("/v1/recommend", json={"history": ["new1"]}).json()["source"] == "policy"
        assert [item["item_id"] for item in client.get("/v1/items?query=brass").json()["items"]] == ["new1"]
        assert _sids(client) == before


def test_adding_the_same_item_again_changes_nothing_and_another_one_of_its_id_is_refused(arguments):
    client = serve_without_ray(arguments)
    first = client.post("/v1/items", json=NEW).json()
    again = client.post("/v1/items", json=NEW).json()
    assert again == first | {"is_new": False}
    for body in (NEW | {"title": "Another lamp"}, {"item_id": "item01", "title": "Title item01"}):
        refused = client.post("/v1/items", json=body)
        assert (refused.status_code, refused.json()["type"]) == (409, "item-exists")
        assert "is in the catalogue with other content; choose another id" in refused.json()["detail"]


def test_two_replicas_that_add_at_once_give_two_semantic_ids(arguments):
    one, two = serve_without_ray(arguments, "one"), serve_without_ray(arguments, "two")
    # the same words give the same nearest codes; neither replica has heard of the other's item
    sids = [
        client.post("/v1/items", json=NEW | {"item_id": item}).json()["sids"]["main"] for client, item in ((one, "x"), (two, "y"))
    ]
    assert sids[0] != sids[1]
    for client in (one, two):
        _follow(client)
        assert [client.get(f"/v1/items/{item}").json()["sid"] for item in ("x", "y")] == sids


def test_an_item_that_was_added_when_prices_were_in_usd_stays_what_it_is(arguments, tmp_path):
    old = {name: value for name, value in NEW.items() if name not in ("price", "currency")}
    Journal(LocalState(tmp_path), "items").append({"item": old | {"price_usd": 9.5, "description": None, "brand": None}}, 0)
    client = serve_without_ray(arguments)
    item = client.get("/v1/items/new1").json()
    assert (item["price"], item["currency"]) == (9.5, "USD")
    assert client.post("/v1/items", json=NEW | {"currency": "USD"}).json()["is_new"] is False
    assert client.post("/v1/items", json=NEW).json()["type"] == "item-exists"


def test_items_are_added_up_to_a_limit(arguments):
    client = serve_without_ray(arguments.model_copy(update={"max_added_items": 1}))
    assert client.post("/v1/items", json=NEW).status_code == 200
    refused = client.post("/v1/items", json=NEW | {"item_id": "new2"})
    assert (refused.status_code, refused.json()["type"]) == (409, "too-many-added")
    assert "1 items were added since the run; run the pipeline again with them" in refused.json()["detail"]


def test_without_a_state_folder_nothing_can_be_added(models):
    client = serve_without_ray(AppArguments(models=models, beam_width=BEAM_WIDTH, max_pending=1))
    for path, body in (("/v1/items", NEW), ("/v1/models", {"action": "promote", "model": "b"})):
        refused = client.post(path, json=body)
        assert (refused.status_code, refused.json()["type"]) == (409, "no-state-dir")
        assert "has no state_dir to keep changes in; set it in serve/config.yaml" in refused.json()["detail"]


def _digests(client) -> dict[str, str]:
    return {version["id"]: version["policy_digest"] for version in client.get("/v1/models").json()["data"]}


def test_versions_answer_side_by_side_and_each_names_itself(models, tmp_path):
    client = serve_without_ray(AppArguments(models=models, beam_width=BEAM_WIDTH, max_pending=1, state_dir=str(tmp_path)))
    lists = {}
    for name in ("a", "b"):
        reply = client.post("/v1/recommend", json={"history": ["item01"], "model": name}).json()
        assert reply["model"] == name
        lists[name] = [item["item_id"] for item in reply["items"]]
    assert lists["a"] != lists["b"]
    assert client.post("/v1/recommend", json={"history": ["item01"]}).json()["model"] == "a"


def test_a_promotion_reaches_every_replica_outlives_a_restart_and_can_be_taken_back(models, tmp_path):
    arguments = AppArguments(models=models, beam_width=BEAM_WIDTH, max_pending=1, state_dir=str(tmp_path))
    one, two = serve_without_ray(arguments, "one"), serve_without_ray(arguments, "two")
    promoted = one.post("/v1/models", json={"action": "promote", "model": "b"}).json()
    assert [version["id"] for version in promoted["data"] if version["default"]] == ["b"]
    assert promoted["previous"] == "a"
    _follow(two)
    for client in (one, two, serve_without_ray(arguments, "three")):
        assert client.get("/healthz").json()["model"] == "b"
    assert two.post("/v1/models", json={"action": "roll_back"}).json()["previous"] == "b"
    _follow(one)
    assert one.get("/healthz").json()["model"] == "a"


def test_a_new_default_in_the_configuration_ends_an_earlier_promotion(models, tmp_path):
    arguments = AppArguments(models=models, beam_width=BEAM_WIDTH, max_pending=1, state_dir=str(tmp_path))
    client = serve_without_ray(arguments)
    client.post("/v1/models", json={"action": "promote", "model": "b"})
    client.post("/v1/models", json={"action": "roll_back"})
    asyncio.run(client.service.configure(LiveSettings(models=models, default_model="b")))
    assert client.get("/healthz").json()["model"] == "b"


@pytest.mark.parametrize(
    ("body", "status", "cause", "detail"),
    [
        ({"action": "promote", "model": "c"}, 404, "unknown-model", "there is no model 'c'; loaded are a, b"),
        ({"action": "promote"}, 422, "nothing-to-choose", "promote needs a model"),
        ({"action": "roll_back"}, 422, "nothing-to-choose", "there is no earlier default version to go back to"),
        ({"action": "promote", "model": "../x"}, 422, "invalid-request", "model: String should match pattern"),
    ],
)
def test_what_cannot_be_promoted_is_a_problem(models, tmp_path, body, status, cause, detail):
    client = serve_without_ray(AppArguments(models=models, beam_width=BEAM_WIDTH, max_pending=1, state_dir=str(tmp_path)))
    reply = client.post("/v1/models", json=body)
    assert (reply.status_code, reply.json()["type"]) == (status, cause)
    assert detail in reply.json()["detail"]


def test_a_version_that_cannot_be_loaded_is_named_and_the_others_go_on(models, tmp_path):
    client = serve_without_ray(AppArguments(models=models, beam_width=BEAM_WIDTH, max_pending=1, state_dir=str(tmp_path)))
    before = _digests(client)
    broken = models | {"a": VersionSettings(run_dir=str(tmp_path / "none"))}
    asyncio.run(client.service.configure(LiveSettings(models=broken)))
    reply = client.get("/v1/models").json()
    assert "artifact policy_sft does not exist" in reply["failed"]["a"]
    assert _digests(client) == before
    assert client.post("/v1/recommend", json={"history": ["item01"]}).json()["model"] == "a"


def test_a_default_version_that_cannot_be_loaded_at_the_start_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"serve: main: .*artifact policy_sft does not exist; run `digr train sft CONFIG`"):
        serve_without_ray(AppArguments(run_dir=str(tmp_path)))


def test_versions_come_and_go_with_the_configuration(models, tmp_path):
    client = serve_without_ray(
        AppArguments(models={"a": models["a"]}, beam_width=BEAM_WIDTH, max_pending=1, state_dir=str(tmp_path))
    )
    client.post("/v1/items", json=NEW)
    asyncio.run(client.service.configure(LiveSettings(models={"b": models["b"]})))
    assert list(_digests(client)) == ["b"]
    assert client.get("/v1/items/new1").status_code == 200  # added before this version came


def test_a_journal_keeps_what_all_its_writers_wrote_in_one_order(tmp_path):
    def write(writer: int) -> list[int]:
        journal, last = Journal(LocalState(tmp_path), "j"), 0
        numbers = []
        for value in range(20):
            last = journal.append({"writer": writer, "value": value}, last)
            numbers.append(last)
        return numbers

    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(write, range(4)))
    entries = [entry.value for entry in Journal(LocalState(tmp_path), "j").read(0)]
    assert sorted(number for own in numbers for number in own) == list(range(1, 81))
    for writer, own in enumerate(numbers):
        assert [entries[number - 1]["value"] for number in own] == list(range(20))
        assert {entries[number - 1]["writer"] for number in own} == {writer}
    assert [entry.value for entry in Journal(LocalState(tmp_path), "j").read(78)] == entries[78:]
    assert [path.name for path in (tmp_path / "j").iterdir() if path.name.startswith(".")] == []
