"""Ask a language model and write its answers as ledger rows, for miners and judges, by vLLM on this cluster or an endpoint.

All prompts go through `ask`. A worker processes several batches at once and writes each answer soon after its arrival, so a
slow answer delays only its own batch's count.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from digr.artifacts import Store
from digr.config.interests import EndpointModel, InterestsConfig, LanguageModel
from digr.images.showing import ImageRules, show_images
from digr.interests import ledger
from digr.interests.spending import Spending, cost_usd, progress_text, worst_case
from digr.models.answers import Answer, AnswerForm
from digr.models.endpoint import Endpoint
from jobs.asking.budget import check_budget, open_meter, settle
from jobs.asking.ledger_tasks import Plan
from jobs.asking.vllm_engine import Engine, check_tensor_parallel
from jobs.runtime.progress import BARS
from jobs.runtime.session import log

WRITE_SECONDS = 0.5
"""Time during which answers are collected into one part; a killed worker loses these answers."""
ENGINE_BATCHES = 8
"""Batches an engine works on at once."""
BATCHES_WAITING = 4
"""Batches queued per worker, so that it never waits for one."""
ENDPOINT_ROWS = 8
"""Prompts per batch of an endpoint. More batches than requests in flight are open, so slow answers never block all of them."""
COUNTED = pa.schema(
    {
        "miner": pa.string(),
        "status": pa.string(),
        "input_tokens": pa.int64(),
        "output_tokens": pa.int64(),
        "cost_usd": pa.float64(),
    }
)
NOT_ASKED = Answer(None, "error")
"""The answer to a request whose image may still come."""
_REPORT_SECONDS = 5.0
_JOIN_BATCHES = 512
"""Batches after which small parts are joined, so that the ledger is fast to read even after a kill."""


class Sink(NamedTuple):
    """Destination of answers: the ledger's folder, and the meter of the budget, None without a cap."""

    uri: str
    meter: Any


def open_sink(interests: InterestsConfig, store: Store, name: str = ledger.LEDGER) -> Sink:
    """Open a ledger to continue it."""
    return Sink(ledger.open_ledger(store, name), open_meter(interests, store))


def write_rows(rows: pa.Table, sink: Sink) -> pa.Table:
    """Append rows to the ledger; return their counts."""
    if len(rows):
        ledger.append(sink.uri, rows)
    return count_rows(rows)


def count_rows(rows: pa.Table) -> pa.Table:
    """Count ledger rows by miner and status, with sums of their tokens and cost."""
    sums = COUNTED.names[2:]
    grouped = rows.group_by(COUNTED.names[:2]).aggregate([([], "count_all"), *((name, "sum") for name in sums)])
    return grouped.rename_columns({"count_all": "rows"} | {f"{name}_sum": name for name in sums})


def add_chats(
    requests: pa.Table, shows_image: Sequence[bool], chat: Callable[[dict, str | None], Any], rules: ImageRules
) -> pa.Table:
    """Add chats as JSON to requests, whether an image is shown (`with_image`), and why one is missing.

    A request whose image is temporarily unavailable gets no chat: it becomes an error, and the next run asks it again.

    Args:
        shows_image: for each request, whether the image of its `image_uri` is to be shown.
        chat: makes the messages from a request and the `data:` address of its image.
        rules: which images may be read.
    """
    rows = requests.to_pylist()
    uris = [row["image_uri"] if wanted else None for row, wanted in zip(rows, shows_image, strict=True)]
    images = show_images(uris, rules) if any(shows_image) else [None] * len(rows)
    shown = [image if wanted else None for image, wanted in zip(images, shows_image, strict=True)]
    urls = [image.url if image else None for image in shown]
    late = [bool(image and image.transient) for image in shown]
    chats = [None if wait else json.dumps(chat(row, url)) for row, url, wait in zip(rows, urls, late, strict=True)]
    columns = {
        "with_image": pa.array([url is not None for url in urls], pa.bool_()),
        "image_reason": pa.array([image.reason if image else None for image in shown], pa.string()),
        "messages": pa.array(chats, pa.string()),
    }
    for name, values in columns.items():
        requests = requests.append_column(name, values)
    return requests.drop_columns(["text", "image_uri"])


def answer_rows(
    prompts: pa.Table, answers: Sequence[Answer], model: LanguageModel, version: str, modality: Sequence[str]
) -> pa.Table:
    """Return answers in the columns of `ledger.RAW_SCHEMA`; the reason why an image is missing precedes an answer's own."""
    reasons = zip(prompts["image_reason"].to_pylist(), (one.reason for one in answers), strict=True)
    return ledger.raw_responses(
        prompts,
        model.name,
        version,
        list(modality),
        response=[one.response for one in answers],
        status=[one.status for one in answers],
        reason=["; ".join(part for part in pair if part) or None for pair in reasons],
        input_tokens=[one.input_tokens for one in answers],
        output_tokens=[one.output_tokens for one in answers],
        cost_usd=[cost_usd(model, one.input_tokens, one.output_tokens) for one in answers],
    )


ToRows = Callable[[pa.Table, Sequence[Answer]], pa.Table]
"""Makes ledger rows of prompts, without their chats, and the answers to them."""


def ask(model: LanguageModel, prompts: Dataset, form: AnswerForm, to_rows: ToRows, sink: Sink, *, key: str = "") -> Dataset:
    """Ask a model, within the budget, and write the rows that `to_rows` makes of its answers; return counts of each batch.

    Args:
        prompts: rows of `add_chats`, with `request_digest`.
        to_rows: runs in the worker that asks.
        key: API key of an endpoint.

    Raises:
        ValueError: no node has the GPUs of one engine.
    """
    if isinstance(model, EndpointModel):
        # prompts in memory are as many as in a few batches of an engine, however many requests are in flight
        rows, at_once = max(1, min(ENDPOINT_ROWS, 2048 // model.concurrency)), model.concurrency + ENGINE_BATCHES
        needs: dict[str, Any] = {"num_cpus": 0.1}
        most_workers = 1  # because each worker applies the rate limit on its own
    else:
        check_tensor_parallel(model)
        rows, at_once, most_workers = model.batch_size, ENGINE_BATCHES, model.concurrency
        needs = {"num_cpus": 1} if model.on_cpu else {"num_gpus": model.tensor_parallel}
    # Ray may join blocks, so they are split again: each batch is a task whose counts arrive when it is done
    return prompts.repartition(target_num_rows_per_block=rows).map_batches(
        _Asker,
        batch_size=rows,
        batch_format="pyarrow",
        fn_constructor_args=(model, form, key, to_rows, sink),
        compute=ActorPoolStrategy(
            min_size=1,
            max_size=most_workers,
            max_tasks_in_flight_per_actor=at_once + BATCHES_WAITING,
            max_concurrent_calls_per_actor=at_once,
        ),
        max_task_retries=3,  # a batch that kills its worker repeatedly stops the job
        **needs,
    )


class _Asker:
    """Asks one model several batches of prompts at once, and writes each answer soon after its arrival."""

    def __init__(self, model: LanguageModel, form: AnswerForm, key: str, to_rows: ToRows, sink: Sink) -> None:
        self.model, self.to_rows, self.sink = model, to_rows, sink
        if isinstance(model, EndpointModel):
            has_answered = bool(ledger.example_answers(sink.uri, model.name, failed=False))
            self.source: Endpoint | Engine = Endpoint(model, key, form, has_answered)
        else:
            self.source = Engine(model, form)
        self.unwritten: list[tuple[dict[str, Any], Answer]] = []
        self.writing: asyncio.Task[list[dict[str, Any]]] | None = None

    async def __call__(self, prompts: pa.Table) -> pa.Table:
        self.schema = prompts.drop_columns("messages").schema
        rows = prompts.to_pylist()
        chats = {row["request_digest"]: json.loads(row.pop("messages") or "[]") for row in rows}
        if self.sink.meter is not None:
            worst = {digest: worst_case(chat, self.model) if chat else Spending() for digest, chat in chats.items()}
            admitted = set(await self.sink.meter.admit.remote(worst))
            rows = [row for row in rows if row["request_digest"] in admitted]
        written = await asyncio.gather(*(self._ask(row, chats[row["request_digest"]]) for row in rows))
        return count_rows(pa.Table.from_pylist(written, COUNTED))

    async def _ask(self, row: dict[str, Any], chat: Any) -> dict[str, Any]:
        """Ask one prompt; return its ledger row after it is written."""
        answer = await self.source.ask(chat) if chat else NOT_ASKED
        self.unwritten.append((row, answer))
        place = len(self.unwritten) - 1
        self.writing = self.writing or asyncio.create_task(self._write())
        return (await self.writing)[place]

    async def _write(self) -> list[dict[str, Any]]:
        await asyncio.sleep(WRITE_SECONDS)
        # answers from now on belong to the next part
        given, self.unwritten, self.writing = self.unwritten, [], None
        prompts = pa.Table.from_pylist([row for row, _ in given], self.schema)
        return await asyncio.to_thread(self._write_part, prompts, [answer for _, answer in given])

    def _write_part(self, prompts: pa.Table, answers: list[Answer]) -> list[dict[str, Any]]:
        rows = self.to_rows(prompts, answers)
        ledger.append(self.sink.uri, rows)
        settle(self.sink.meter, rows)
        return rows.select(COUNTED.names).to_pylist()


class ModelRun(NamedTuple):
    """A model that is being asked: counts of its batches, and its missing requests."""

    name: str
    counts: Dataset
    plan: Future[Plan]


def follow_runs(stage: str, runs: Sequence[ModelRun], sink: Sink, interests: InterestsConfig) -> None:
    """Wait for models that answer in parallel, and log progress.

    Raises:
        ValueError: too many requests of a model failed, or the budget is used up.
    """
    written = runs[0].counts.union(*(run.counts for run in runs[1:])) if len(runs) > 1 else runs[0].counts
    plans = {run.name: run.plan for run in runs}
    join_parts: Any = ray.remote(ledger.join_parts)
    start, joined = time.monotonic(), ray.put(None)
    reported, spent = dict.fromkeys(plans, 0.0), dict.fromkeys(plans, Spending())
    counts, first = {name: Counter[str]() for name in plans}, dict[str, tuple[int, float]]()
    for number, batch in enumerate(written.iter_batches(batch_size=None, batch_format="pyarrow"), 1):
        assert isinstance(batch, pa.Table)
        if number % _JOIN_BATCHES == 0:
            ray.get(joined)
            joined = join_parts.remote(sink.uri)
        for row in batch.to_pylist():
            name, now = row["miner"], time.monotonic()
            counts[name][row["status"]] += row["rows"]
            spent[name] = spent[name].plus(Spending(row["input_tokens"] + row["output_tokens"], row["cost_usd"]))
            plan, done = plans[name].result(), counts[name].total()
            began = first.setdefault(name, (done, now - start))
            BARS.show(stage, done, plan.num_missing, name)
            if done >= plan.num_missing or now - reported[name] > _REPORT_SECONDS:
                reported[name] = now
                text = progress_text(done, plan.num_missing, now - start, spent[name], began)
                log(stage, f"{name}: {text}, {dict(counts[name])}")
            _check_failures(name, counts[name]["error"], plan.num_wanted, sink.uri, interests.max_failed_rate)
    ray.get(joined)
    ray.get(join_parts.remote(sink.uri))
    num_missing = sum(one.result().num_missing for one in plans.values())
    check_budget(sink.meter, interests, num_missing - sum(one.total() for one in counts.values()))


def _check_failures(name: str, num_failed: int, num_wanted: int, uri: str, max_rate: float) -> None:
    """Stop as soon as more requests have failed than `max_rate` of all wanted ones."""
    if num_failed > max_rate * num_wanted:
        shown = "\n  ".join(ledger.example_answers(uri, name, failed=True))
        raise ValueError(
            f"{name}: {num_failed} of {num_wanted} requests failed, more than interests.max_failed_rate = {max_rate} allows; "
            f"the last ones:\n  {shown}\nFix the cause and run the job again, which asks them again, or raise the limit"
        )
