"""What a replica repeats beside its routes, its health, and what replicas tell each other."""

import asyncio
import contextlib
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve.contract.problems import ProblemError
from serve.keys import make_key, written
from serve.lists.decoding import decode
from serve.lists.waiting import Line
from serve.middleware.callers import KeyRing
from serve.replicas.background import Background, in_own_thread
from serve.replicas.board import MemoryBoard
from serve.replicas.replica import Replica
from serve.settings import AppArguments
from tests.patience import CEILING_SECONDS
from tests.serve.tiny_run import BEAM_WIDTH, client_of, serve_without_ray, start_service


async def _until(holds) -> None:
    async with asyncio.timeout(CEILING_SECONDS):
        while not holds():
            await asyncio.sleep(0.001)


class Work:
    """Work that counts how often it was begun, and fails or hangs as told."""

    def __init__(self, failure: BaseException | None = None, hangs: bool = False) -> None:
        self.failure, self.hangs, self.num_begun, self.is_cancelled = failure, hangs, 0, False

    async def __call__(self) -> None:
        self.num_begun += 1
        try:
            if self.hangs:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.is_cancelled = True
            raise
        if self.failure:
            raise self.failure


def test_work_that_fails_or_hangs_stops_no_other_and_is_told(caplog):
    failing, hanging, good = Work(KeyError("lost")), Work(hangs=True), Work()

    async def run() -> None:
        background = Background(0)
        background.start(follow=failing, report=hanging, keys=good)
        background.start(follow=good)  # runs already
        await _until(lambda: good.num_begun > 20 and failing.num_begun > 5)
        assert (hanging.num_begun, background.ended()) == (1, [])
        await background.stop()
        assert background.ended() == ["follow", "report", "keys"]
        assert hanging.is_cancelled
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        begun = good.num_begun
        await asyncio.sleep(0.01)
        assert good.num_begun == begun

    asyncio.run(run())
    assert "follow: failed, trying again" in caplog.text and "KeyError: 'lost'" in caplog.text


def test_work_in_its_own_thread_waits_for_no_thread_that_is_held_up():
    async def run() -> None:
        loop, go, held = asyncio.get_running_loop(), threading.Event(), []
        loop.set_default_executor(ThreadPoolExecutor(1))
        held.append(loop.run_in_executor(None, go.wait))  # the only thread for everything
        assert await in_own_thread(lambda: 7)() == 7
        go.set()
        await asyncio.gather(*held)

    asyncio.run(run())


def _opens(replica: Replica, key: str) -> bool:
    with contextlib.suppress(ProblemError):
        replica.keys.check({}, {"authorization": f"Bearer {key}"}, "admin")
        return True
    return False


def test_a_removed_admin_key_is_of_no_use_while_following_fails(tiny_run, tmp_path, caplog):
    """Keys were read after the journals were followed: as long as that failed, a removed key could change everything."""
    made = [make_key(name, "admin") for name in ("stays", "goes")]
    path = tmp_path / "keys.toml"
    path.write_text("".join(written(record) for _, record in made))
    state = tmp_path / "state"
    arguments = AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH, state_dir=str(state), follow_seconds=0.001)
    replica = Replica(start_service(arguments), KeyRing(str(path)))
    keys = [key for key, _ in made]

    async def run() -> None:
        replica.start()
        assert [_opens(replica, key) for key in keys] == [True, True]
        shutil.rmtree(state, ignore_errors=True)
        state.write_text("no folder")
        await _until(lambda: "follow: failed, trying again" in caplog.text)
        path.write_text(written(made[0][1]))
        await _until(lambda: not _opens(replica, keys[1]))
        assert _opens(replica, keys[0])
        replica.check_health()
        await replica.stop()

    asyncio.run(run())


def test_a_replica_shares_the_rates_with_those_that_report(tiny_run, tmp_path):
    key, record = make_key("one", "read")
    (tmp_path / "keys.toml").write_text(written(record.model_copy(update={"requests_per_second": 1e-9, "burst": 100})))
    board = MemoryBoard()
    arguments = AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH, follow_seconds=0.001)
    replica = Replica(start_service(arguments, board=board), KeyRing(str(tmp_path / "keys.toml")))

    async def run() -> None:
        for other in ("two", "three", "four"):
            await board.report(other, "")
        replica.start()
        await _until(lambda: replica.keys.num_replicas == 4)
        await replica.stop()
        for _ in range(25):
            replica.keys.check({}, {"authorization": f"Bearer {key}"}, "read")
        with pytest.raises(ProblemError, match="the key 'one' has used up its rate"):
            replica.keys.check({}, {"authorization": f"Bearer {key}"}, "read")

    asyncio.run(run())


def test_a_replica_whose_tasks_ended_is_to_be_replaced(tiny_run):
    replica = Replica(start_service(AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH)), KeyRing(""))

    async def run() -> None:
        replica.start()
        replica.check_health()
        await replica.stop()
        with pytest.raises(RuntimeError, match="the tasks follow, follow_events, read_keys, report have ended; see the log"):
            replica.check_health()

    asyncio.run(run())


def test_a_decoder_that_is_stuck_fails_every_health_check(tiny_run):
    """A replica whose decoder hung was healthy and ready for ever, and answered every list with a 504."""
    now, go = [100.0], threading.Event()

    def hang(jobs):
        go.wait(CEILING_SECONDS)
        return decode(jobs)

    service = start_service(AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH))
    service.line = Line(hang, 4, 10.0, service.metrics, lambda: now[0])
    client, replica = client_of(service), Replica(service, KeyRing(""))

    async def run() -> None:
        _, run = service.version(None)
        asked = asyncio.ensure_future(service.line.decode([service.line.job(run, run.prompt([1]), 4)]))
        await _until(lambda: service.line.is_busy)
        for seconds, status in ((0.0, 200), (60.0, 200), (60.1, 503)):
            now[0] = 100.0 + seconds
            replies = [await asyncio.to_thread(client.get, path) for path in ("/healthz", "/readyz")]
            assert [reply.status_code for reply in replies] == [status] * 2
        assert {reply.json()["type"] for reply in replies} == {"decoder-down"}
        assert replies[0].json()["detail"].startswith("the decoder has been stuck for 60 s; this replica will be replaced")
        with pytest.raises(RuntimeError, match="the decoder has been stuck for 60 s"):
            replica.check_health()
        go.set()
        assert len((await asked)[0].item_ids) == 4
        replica.check_health()

    asyncio.run(run())


def test_a_decoder_whose_thread_takes_no_work_fails_every_health_check(tiny_run):
    service = start_service(AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH))
    client, replica = client_of(service), Replica(service, KeyRing(""))
    replica.check_health()
    service.line.close()
    assert client.post("/v1/recommend", json={"history": ["item01"]}).status_code == 503
    assert [client.get(path).status_code for path in ("/healthz", "/readyz")] == [503, 503]
    with pytest.raises(RuntimeError, match="the decoder takes no more work"):
        replica.check_health()


def test_a_replica_that_reports_no_more_is_neither_counted_nor_shown():
    now = [0.0]
    board = MemoryBoard(lambda: now[0])

    async def run() -> None:
        assert (await board.report("one", "a"), await board.report("two", "b"), await board.report("one", "c")) == (1, 2, 2)
        assert await board.reports() == {"one": "c", "two": "b"}
        now[0] = 15.0
        assert await board.report("one", "d") == 2
        now[0] = 15.1
        assert await board.reports() == {"one": "d"}
        assert await board.report("one", "e") == 1

    asyncio.run(run())


def test_the_metrics_of_a_replica_that_is_gone_are_not_shown(tiny_run):
    now = [0.0]
    board = MemoryBoard(lambda: now[0])
    arguments = AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH)
    one, two = (serve_without_ray(arguments, name, board=board) for name in ("one", "two"))
    for client in (one, two):
        client.get("/readyz")
        asyncio.run(client.service.report())
    shown = []
    for now[0] in (15.0, 15.1):
        shown.append(set(re.findall(r'digr_requests_total{replica="(\w+)",route="/readyz"', one.get("/metrics").text)))
    assert shown == [{"one", "two"}, {"one"}]


def test_metrics_of_one_replica_alone_are_never_given_for_all(tiny_run):
    class Lost:
        async def report(self, replica: str, numbers: str) -> int:
            raise ConnectionError("gone")

        async def reports(self) -> dict[str, str]:
            raise ConnectionError("gone")

    client = serve_without_ray(AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH), board=Lost())
    reply = client.get("/metrics")
    assert (reply.status_code, reply.json()["type"], reply.headers["retry-after"]) == (503, "metrics-incomplete", "1")
    assert reply.json()["detail"] == "the metrics of all replicas cannot be read (gone); try again"
