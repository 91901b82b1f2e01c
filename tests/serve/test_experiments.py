"""Users are split between versions by their id alone, lists are logged, and a shadow decodes without being seen."""

import asyncio
import threading
import time
from collections import Counter

import duckdb
import pytest
from pydantic import ValidationError

from digr.data.event_store import IMPRESSIONS, impressions_log, list_segments, load_log
from digr.files import digest_of
from digr.serving.event_parts import build_parts
from serve.contract.schemas import RecommendReply, RecommendRequest
from serve.lists.decoding import decode
from serve.lists.experiments import ExperimentSettings, ShadowSettings
from serve.lists.recommending import _offer_shadow, answer_request
from serve.middleware.callers import KeyRing
from serve.replicas.replica import Replica
from serve.service import Service
from serve.settings import AppArguments, LiveSettings, VersionSettings
from tests.serve.tiny_run import BEAM_WIDTH, serve_without_ray, start_service, without_id, write_canonical, write_run

SPLIT = ExperimentSettings(name="test", arms={"new": 0.1, "main": 0.9})
USERS = [f"u{number}" for number in range(20_000)]


@pytest.fixture(scope="module")
def models(tiny_run, tmp_path_factory):
    other = write_run(str(tmp_path_factory.mktemp("other")), seed=5)
    return {"main": VersionSettings(run_dir=tiny_run.root), "new": VersionSettings(run_dir=other.root)}


@pytest.fixture
def arguments(models, tmp_path):
    return AppArguments(models=models, beam_width=BEAM_WIDTH, max_pending=1, state_dir=str(tmp_path))


def logged(client) -> list[dict]:
    client.service.impressions.commit.flush()
    with duckdb.connect() as connection:
        load_log(connection, impressions_log(client.service.arguments.events_dir), "lists", IMPRESSIONS.names)
        return connection.sql("SELECT * FROM lists ORDER BY received, shadow").to_arrow_table().to_pylist()


def test_shares_are_as_configured():
    """Over 20,000 users the share of 10 % has a standard error of 0.21 %."""
    counts = Counter(map(SPLIT.arm_of, USERS))
    assert abs(counts["new"] / len(USERS) - 0.1) < 3 * 0.0021
    three = ExperimentSettings(name="three", arms={"a": 0.2, "b": 0.3, "c": 0.5, "d": 0.0})
    found = Counter(map(three.arm_of, USERS))
    assert found["d"] == 0
    for arm, share in (("a", 0.2), ("b", 0.3), ("c", 0.5)):
        assert abs(found[arm] / len(USERS) - share) < 0.0106  # 3 standard errors of 50 %


def test_a_user_stays_in_an_arm_whatever_the_order_of_arms_and_across_programs():
    turned = ExperimentSettings(name="test", arms={"main": 0.9, "new": 0.1})
    assert [*map(SPLIT.arm_of, USERS[:2000])] == [*map(turned.arm_of, USERS[:2000])]
    assert [user for user in USERS[:40] if SPLIT.arm_of(user) == "new"] == ["u6", "u22", "u25", "u29", "u30"]


def test_a_larger_share_moves_nobody_out_of_the_arm_that_grew():
    more = ExperimentSettings(name="test", arms={"new": 0.25, "main": 0.75})
    moved = Counter((SPLIT.arm_of(user), more.arm_of(user)) for user in USERS)
    assert moved["new", "main"] == 0
    assert abs(moved["main", "new"] / len(USERS) - 0.15) < 0.008


def test_two_experiments_split_independently():
    other = ExperimentSettings(name="other", arms={"new": 0.5, "main": 0.5})
    both = Counter((SPLIT.arm_of(user), other.arm_of(user)) for user in USERS)
    assert abs(both["new", "new"] / (both["new", "new"] + both["new", "main"]) - 0.5) < 0.034  # 3 standard errors of 2,000


@pytest.mark.parametrize("arms", [{"a": 0.5}, {"a": 0.7, "b": 0.7}, {"a": -0.5, "b": 1.5}, {"a": float("nan"), "b": 1.0}])
def test_shares_that_are_none_are_refused(arms):
    with pytest.raises(ValidationError, match="shares are from 0 to 1 and add up to 1"):
        ExperimentSettings(name="x", arms=arms)


def test_an_experiment_or_shadow_of_an_unknown_version_is_refused(models):
    with pytest.raises(ValidationError, match=r"experiment: gone: none of the models \['main', 'new'\]"):
        LiveSettings(models=models, experiment=ExperimentSettings(name="x", arms={"main": 0.5, "gone": 0.5}))
    with pytest.raises(ValidationError, match=r"shadow: gone: none of the models"):
        LiveSettings(models=models, shadow=ShadowSettings(model="gone"))


def test_a_user_is_answered_by_the_version_of_the_arm_which_reply_and_log_name(arguments):
    arguments = arguments.model_copy(update={"experiment": SPLIT})
    one, two = serve_without_ray(arguments, "one"), serve_without_ray(arguments, "two")
    users = [next(user for user in USERS if SPLIT.arm_of(user) == arm) for arm in ("main", "new")]
    for client in (one, two):
        for user, arm in zip(users, ("main", "new"), strict=True):
            reply = client.post("/v1/recommend", json={"user_id": user}).json()
            assert (reply["model"], reply["experiment"]) == (arm, {"experiment": "test", "arm": arm})
    assert [(row["user_id"], row["model"], row["experiment"], row["arm"]) for row in logged(two)] == [
        (user, arm, "test", arm) for user, arm in zip(users * 2, ("main", "new") * 2, strict=True)
    ]


def test_who_names_a_version_or_no_user_is_outside(arguments):
    client = serve_without_ray(arguments.model_copy(update={"experiment": SPLIT}))
    user = next(user for user in USERS if SPLIT.arm_of(user) == "new")
    for body in ({"user_id": user, "model": "main"}, {"history": ["item01"]}):
        reply = client.post("/v1/recommend", json=body).json()
        assert (reply["model"], reply["experiment"]) == ("main", None)


def test_a_user_whose_version_is_not_loaded_gets_the_default_and_is_outside(arguments, models, tmp_path):
    broken = arguments.model_copy(
        update={"experiment": SPLIT, "models": models | {"new": VersionSettings(run_dir=str(tmp_path / "gone"))}}
    )
    client = serve_without_ray(broken)
    user = next(user for user in USERS if SPLIT.arm_of(user) == "new")
    reply = client.post("/v1/recommend", json={"user_id": user}).json()
    assert (reply["model"], reply["experiment"]) == ("main", None)
    assert "new" in client.get("/v1/models").json()["failed"]


def test_an_experiment_starts_and_ends_with_the_configuration(arguments, models):
    client = serve_without_ray(arguments)
    user = next(user for user in USERS if SPLIT.arm_of(user) == "new")
    for experiment, expected in ((SPLIT, "new"), (None, "main")):
        asyncio.run(client.service.configure(LiveSettings(models=models, experiment=experiment)))
        assert client.post("/v1/recommend", json={"user_id": user}).json()["model"] == expected


def test_the_log_has_what_was_shown_and_why_and_no_text_of_a_person(tmp_path):
    store = write_run(str(tmp_path / "run"))
    write_canonical(store)
    client = serve_without_ray(AppArguments(run_dir=store.root, beam_width=BEAM_WIDTH, max_pending=1))
    for explain in (True, False):
        body = {"history": ["item00", "item03"], "k": 6, "explain": explain}
        reply = client.post("/v1/recommend", json=body).json()
        row = logged(client)[-1]
        assert (row["recommendation_id"], row["model"], row["shadow"]) == (reply["recommendation_id"], "main", False)
        assert (row["user_id"], row["list_source"], row["history"]) == (None, "policy", digest_of(["item00", "item03"]))
        assert [item["item_id"] for item in row["items"]] == [item["item_id"] for item in reply["items"]]
        assert [item["position"] for item in row["items"]] == [1, 2, 3, 4, 5, 6]
        assert {str(item["sources"]) for item in row["items"]} == {"['policy']"}
        # item i has `interest i % 3`; both of the history have `interest 0`, whose canonical interest is `weekend hikes`
        wanted = ["weekend hikes" if int(item["item_id"][4:]) % 3 == 0 else None for item in reply["items"]]
        assert [item["interest"] for item in row["items"]] == wanted
    assert set(IMPRESSIONS.names) == {
        "recommendation_id", "received", "user_id", "history", "model", "experiment", "arm", "shadow", "list_source", "items",
    }  # fmt: skip


def test_every_list_of_a_batch_has_an_id_of_its_own_and_is_logged(arguments):
    client = serve_without_ray(arguments)
    bodies = [{"history": ["item01"]}, {"history": []}, {"user_id": "u2"}]
    replies = client.post("/v1/recommend/batch", json={"requests": bodies}).json()["replies"]
    ids = [replies[0]["recommendation_id"], replies[2]["recommendation_id"]]
    assert {row["recommendation_id"] for row in logged(client)} == set(ids)
    assert len(set(ids)) == 2


def test_the_log_can_be_off(arguments):
    client = serve_without_ray(arguments.model_copy(update={"impressions": "off"}))
    assert client.post("/v1/recommend", json={"history": ["item01"]}).json()["recommendation_id"]
    assert client.service.impressions is None


def test_a_log_that_is_full_or_fails_delays_no_reply_and_is_counted(arguments, monkeypatch):
    client, gate = serve_without_ray(arguments), threading.Event()
    log = client.service.impressions
    log.commit.run(gate.wait)  # the disk takes its time
    log.commit.submit(lambda: b"", 2000)
    assert client.post("/v1/recommend", json={"history": ["item01"]}).status_code == 200
    gate.set()
    log.commit.flush()
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert client.post("/v1/recommend", json={"history": ["item01"]}).status_code == 200
    log.commit.flush()
    monkeypatch.undo()
    reply = client.post("/v1/recommend", json={"history": ["item01"]}).json()
    assert logged(client)[-1]["recommendation_id"] == reply["recommendation_id"]
    text = client.get("/metrics").text
    for outcome in ("dropped", "failed", "logged"):
        assert f'digr_impressions_total{{outcome="{outcome}",replica="one"}} 1.0' in text


def test_a_replica_that_stops_writes_what_waits_and_closes_its_segments(arguments):
    service = start_service(arguments)
    asyncio.run(answer_request(service, RecommendRequest(history=["item01"])))
    asyncio.run(Replica(service, KeyRing("")).stop())
    log = impressions_log(service.arguments.events_dir)
    assert len(list_segments(log)) == 1
    assert build_parts(log, time.time() + 3600) == 1


def shadowed(service, bodies: list[dict]) -> list:
    """Answer requests one after the other and wait for the shadow."""

    async def ask() -> list:
        replies = [await answer_request(service, RecommendRequest(**body)) for body in bodies]
        while service.shadows.is_busy:
            await asyncio.sleep(0)
        return replies

    return asyncio.run(ask())


def test_the_shadow_decodes_what_others_answer_and_is_logged_under_the_same_id(arguments):
    service = start_service(arguments.model_copy(update={"shadow": ShadowSettings(model="new")}))
    replies = shadowed(service, [{"user_id": "u2", "k": 4}, {"history": ["item01"], "model": "main"}])
    client = serve_without_ray(arguments)
    alone = client.post("/v1/recommend", json={"user_id": "u2", "k": 4, "model": "new"}).json()
    service.impressions.commit.flush()
    rows = {(row["recommendation_id"], row["shadow"]): row for row in logged(client)}
    shadow = rows[replies[0].recommendation_id, True]
    assert (shadow["model"], shadow["user_id"]) == ("new", "u2")
    assert [item["item_id"] for item in shadow["items"]] == [item["item_id"] for item in alone["items"]]
    assert (replies[0].model, rows[replies[0].recommendation_id, False]["model"]) == ("main", "main")
    assert (replies[1].recommendation_id, True) not in rows  # it named a version
    plain = start_service(arguments)
    assert without_id(shadowed(plain, [{"user_id": "u2", "k": 4}])[0].model_dump()) == without_id(replies[0].model_dump())


def test_a_shadow_that_cannot_answer_or_has_too_much_to_do_is_counted_and_nobody_notices(arguments):
    service = start_service(arguments.model_copy(update={"shadow": ShadowSettings(model="new")}))

    async def fail() -> None:
        raise RuntimeError("broken")

    async def offer(ask, times: int) -> None:
        for _ in range(times):
            service.shadows.offer(ask)
        while service.shadows.is_busy:
            await asyncio.sleep(0)

    asyncio.run(offer(fail, 18))
    text = service.metrics.text({}).decode()
    assert 'digr_shadow_lists_total{outcome="failed",replica="one"} 16.0' in text
    assert 'digr_shadow_lists_total{outcome="dropped",replica="one"} 2.0' in text


def test_a_request_is_not_refused_because_the_shadow_decodes(arguments):
    """max_pending is 1: were the shadow's list counted, the next request would find the line full."""
    began, gate = threading.Event(), threading.Event()

    def slow(jobs):
        if jobs[0].run is service.versions["new"].run:
            began.set()
            gate.wait()
        return decode(jobs)

    resolved = arguments.model_copy(update={"shadow": ShadowSettings(model="new"), "deadline_seconds": 600.0}).resolved()
    service = Service(resolved, replica="one", decode=slow)

    async def ask() -> list:
        await service.configure(resolved.live())
        first = await answer_request(service, RecommendRequest(history=["item01"]))
        await asyncio.to_thread(began.wait)
        second = asyncio.create_task(answer_request(service, RecommendRequest(history=["item02"])))
        await asyncio.sleep(0)
        gate.set()
        return [first, await second]

    assert [reply.model for reply in asyncio.run(ask())] == ["main", "main"]


def test_a_share_of_the_requests_is_shadowed(arguments):
    service = start_service(arguments.model_copy(update={"shadow": ShadowSettings(model="new", share=0.25)}))
    offered = []
    service.shadows.offer = offered.append
    for number in range(16):
        reply = RecommendReply(items=[], source="policy", model="main", recommendation_id=f"{number:x}{'0' * 31}")
        _offer_shadow(service, RecommendRequest(history=["item01"]), reply)
    assert len(offered) == 4
