"""The queue of requests: it is bounded, has deadlines and drops clients that go away; and what a failing server answers."""

import asyncio
import contextlib
import threading
import time

import numpy as np
import pytest

from digr.policy.decoding.search import Recommendation
from digr.serving.facts import pack
from serve.contract.problems import ProblemError
from serve.lists.decoding import Job, decode
from serve.lists.waiting import Line
from serve.middleware.callers import Caller, set_caller
from serve.replicas.metrics import Metrics
from serve.service import Service
from serve.settings import AppArguments
from tests.patience import CEILING_SECONDS
from tests.serve.tiny_run import BEAM_WIDTH, NUM_ITEMS, client_of, start_service


class Decoder:
    """Answers jobs when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()

    def __call__(self, jobs: list[Job]) -> list[Recommendation | Exception]:
        self.batches.append([job.prompt for job in jobs if job.is_wanted])
        assert self.go.wait(CEILING_SECONDS)
        return [Recommendation([job.prompt], [0.0], None) if job.is_wanted else TimeoutError() for job in jobs]


def _line(decoder, max_pending: int = 3, seconds: float = CEILING_SECONDS) -> Line:
    return Line(decoder, max_pending, seconds, Metrics("one"))


def _jobs(line: Line, *prompts: str) -> list[Job]:
    return [line.job(None, prompt, 1) for prompt in prompts]


def test_one_more_than_may_wait_is_told_to_come_again():
    async def run() -> None:
        decoder = Decoder()
        line = _line(decoder)
        waiting = asyncio.ensure_future(line.decode(_jobs(line, "a", "b")))
        await asyncio.sleep(0)
        with pytest.raises(ProblemError, match="2 lists wait already; try again after the time of Retry-After") as caught:
            await line.decode(_jobs(line, "c", "d"))
        assert (caught.value.problem.status, caught.value.headers) == (429, {"Retry-After": "1", "Digr-Line-Is-Full": "1"})
        last = asyncio.ensure_future(line.decode(_jobs(line, "e")))
        await asyncio.sleep(0)
        decoder.go.set()
        assert [one.item_ids for one in await waiting + await last] == [["a"], ["b"], ["e"]]
        assert len(await line.decode(_jobs(line, *"fghij"))) == 5  # into an empty line gets a batch of any size

    asyncio.run(run())


def test_all_that_came_while_the_decoder_was_busy_are_its_next_batch():
    async def run() -> None:
        decoder = Decoder()
        line = _line(decoder, max_pending=100)
        asked = [asyncio.ensure_future(line.decode(_jobs(line, "first")))]
        while not decoder.batches:
            await asyncio.sleep(0.001)
        asked += [asyncio.ensure_future(line.decode(_jobs(line, str(number)))) for number in range(40)]
        await asyncio.sleep(0)
        decoder.go.set()
        await asyncio.gather(*asked)
        everyone = [str(number) for number in range(40)]
        assert decoder.batches == [["first"], everyone[:32], everyone[32:]]

    asyncio.run(run())


def test_a_late_answer_is_a_problem_and_its_place_in_the_line_is_free_only_when_its_turn_has_come():
    async def run() -> None:
        decoder = Decoder()
        line = _line(decoder, max_pending=1, seconds=0.05)
        with pytest.raises(ProblemError, match=r"there was no answer within 0\.05 seconds; the server is busy") as caught:
            await line.decode(_jobs(line, "a"))
        assert (caught.value.problem.status, caught.value.headers) == (504, {"Retry-After": "1"})
        with pytest.raises(ProblemError, match="1 lists wait already"):
            await line.decode(_jobs(line, "b"))
        decoder.go.set()
        assert await _decode_at_last(line, "c") == [["c"]]

    asyncio.run(run())


async def _decode_as(name: str, line: Line, *prompts: str) -> list[Recommendation]:
    set_caller(Caller(name))
    return await line.decode(_jobs(line, *prompts))


def test_a_caller_who_fills_the_line_leaves_room_for_others_and_everyone_has_a_turn():
    """One client's batches kept the line full, and everyone else was told to come again."""

    async def run() -> None:
        decoder = Decoder()
        line = _line(decoder, max_pending=100)
        first = asyncio.ensure_future(_decode_as("busy", line, "first"))
        await _until(lambda: decoder.batches)
        asked = [asyncio.ensure_future(_decode_as("busy", line, *(f"busy{number}" for number in range(99))))]
        await asyncio.sleep(0)
        with pytest.raises(ProblemError, match="100 lists wait already"):
            await _decode_as("busy", line, "one more")
        asked.append(asyncio.ensure_future(_decode_as("calm", line, *(f"calm{number}" for number in range(49)))))
        asked.append(asyncio.ensure_future(_decode_as("calm", line, "calm49")))
        await asyncio.sleep(0)
        with pytest.raises(ProblemError, match="50 lists wait already"):  # two share 100
            await _decode_as("calm", line, "one more")
        asked.append(asyncio.ensure_future(_decode_as("rare", line, "rare0")))
        await asyncio.sleep(0)
        decoder.go.set()
        await asyncio.gather(first, *asked)
        assert decoder.batches[1][:5] == ["busy0", "calm0", "rare0", "busy1", "calm1"]
        assert [len([prompt for prompt in batch if prompt.startswith("calm")]) for batch in decoder.batches[1:4]] == [15, 16, 16]
        assert (await _decode_as("busy", line, "again"))[0].item_ids == ["again"]

    asyncio.run(run())


def test_a_large_request_of_a_caller_who_waits_for_nothing_gets_in_while_others_fill_the_line():
    async def run() -> None:
        decoder = Decoder()
        line = _line(decoder, max_pending=8)
        asked = [asyncio.ensure_future(_decode_as(name, line, *"abcdefgh")) for name in ("one", "two", "three")]
        await _until(lambda: decoder.batches)
        asked.append(asyncio.ensure_future(_decode_as("batch", line, *"abcdefghijklmnop")))
        await asyncio.sleep(0)
        decoder.go.set()
        assert [len(found) for found in await asyncio.gather(*asked)] == [8, 8, 8, 16]

    asyncio.run(run())


def test_a_decoder_with_too_few_results_fails_its_batch_and_the_line_goes_on():
    """Whoever waited for that batch waited until the deadline."""

    async def run() -> None:
        line = _line(lambda jobs: [Recommendation([job.prompt], [0.0], None) for job in jobs if job.prompt != "bad"])
        with pytest.raises(ValueError, match="the decoder gave 0 results for 1 jobs"):
            await line.decode(_jobs(line, "bad"))
        assert [one.item_ids for one in await line.decode(_jobs(line, "a"))] == [["a"]]
        assert line.trouble() is None

    asyncio.run(run())


async def _until(holds) -> None:
    async with asyncio.timeout(CEILING_SECONDS):
        while not holds():
            await asyncio.sleep(0.001)


async def _decode_at_last(line: Line, prompt: str) -> list[list[str]]:
    """Ask again while the line is full or the machine is slower than the deadline."""
    while True:
        with contextlib.suppress(ProblemError):
            return [one.item_ids for one in await line.decode(_jobs(line, prompt))]
        await asyncio.sleep(0.01)


def test_a_decoder_that_fails_fails_its_batch_at_once_and_the_line_goes_on():
    def fail_once(jobs: list[Job]) -> list[Recommendation | Exception]:
        if jobs[0].prompt == "bad":
            raise IndexError("out of range")
        return [Recommendation([job.prompt], [0.0], None) for job in jobs]

    async def run() -> None:
        line = _line(fail_once)
        with pytest.raises(IndexError, match="out of range"):
            await line.decode(_jobs(line, "bad"))
        assert [one.item_ids for one in await line.decode(_jobs(line, "a"))] == [["a"]]

    asyncio.run(run())


def test_a_request_that_goes_away_is_not_decoded():
    async def run() -> None:
        decoder = Decoder()
        line = _line(decoder)
        staying = asyncio.ensure_future(line.decode(_jobs(line, "stays")))
        while not decoder.batches:
            await asyncio.sleep(0.001)
        leaving = asyncio.ensure_future(line.decode(_jobs(line, "leaves")))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        decoder.go.set()
        await staying
        while len(decoder.batches) < 2:
            await asyncio.sleep(0.001)
        assert decoder.batches == [["stays"], []]

    asyncio.run(run())


def test_jobs_that_nobody_waits_for_cost_no_decoding(tiny_run):
    service = start_service(AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH, max_pending=1))
    _, run = service.version(None)
    wanted, late, gone = (Job(run, run.prompt([1]), 4, None, time.monotonic() + after) for after in (600, -1, 600))
    gone.is_wanted = False
    found = decode([wanted, late, gone])
    assert len(found[0].item_ids) == 4
    assert [type(one) for one in found[1:]] == [TimeoutError, TimeoutError]


def test_requests_of_other_beams_and_filters_are_decoded_as_they_are_alone(tiny_run):
    service = start_service(AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH, max_pending=1))
    _, run = service.version(None)
    rng = np.random.default_rng(0)
    jobs = [
        Job(run, run.prompt([place]), width, None if place % 3 else pack(rng.random(NUM_ITEMS) < 0.3), time.monotonic() + 600)
        for place, width in enumerate([4, 12, 4, 12, 12, 3, 4, 12, 12])
    ]
    for job, together in zip(jobs, decode(jobs), strict=True):
        alone = decode([job])[0]
        assert together.item_ids == alone.item_ids
        assert together.scores == pytest.approx(alone.scores, abs=1e-5)


def test_a_replica_that_is_not_ready_says_so(tiny_run):
    service = Service(AppArguments(run_dir=tiny_run.root).resolved())
    client = client_of(service)
    for reply in (client.get("/readyz"), client.get("/healthz"), client.get("/v1/models"), client.get("/v1/items")):
        assert (reply.status_code, reply.json()["type"], reply.headers["retry-after"]) == (503, "not-ready", "1")
        assert reply.json()["detail"].startswith("this replica is starting or going down; try again")


def test_a_failure_of_the_server_is_a_problem_without_its_secrets(tiny_run):
    def fail(jobs: list[Job]) -> list[Exception]:
        return [RuntimeError("secret path /srv/x")] * len(jobs)

    arguments = AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH, max_pending=1).resolved()
    service = Service(arguments, decode=fail)
    asyncio.run(service.configure(arguments.live()))
    reply = client_of(service).post("/v1/recommend", json={"history": ["item01"]})
    assert (reply.status_code, reply.json()["type"]) == (500, "internal-error")
    assert reply.json()["detail"] == "the server failed; its log says why"
