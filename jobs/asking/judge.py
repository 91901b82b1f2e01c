"""Ask the judge of every interest, by vLLM or an endpoint, and keep its verdicts in the label job's scratch folder."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from digr.artifacts import Store
from digr.config import Config
from digr.config.interests import OpenAIJudge, VllmJudge
from digr.models.endpoint import Pace, api_key, ask_endpoint
from digr.partitions import parts_of
from digr.rewards.judge import (
    CHOICES,
    JUDGED,
    KEY,
    TOP_TOKENS,
    endpoint_fields,
    judge_messages,
    read_verdict,
    yes_probability,
)
from digr.rewards.labeling import labelled_texts
from digr.tables import flat_interests
from jobs.asking.ledger_tasks import map_tables
from jobs.asking.vllm_engine import Answer, run_engine
from jobs.asking.votes import keep_verdicts, read_votes
from jobs.runtime.datasets import part_dataset, parts_in
from jobs.runtime.session import say

BLOCK_ROWS = 256
"""Verdicts asked of an endpoint, and written, at once: what a killed job loses at most."""
SAY_SECONDS = 5.0
"""Time between two progress lines."""


def ask_judge(config: Config, store: Store, work: str, items: Any) -> dict[str, int]:
    """Write the judge's verdicts, batch by batch; those that a killed run of the same job got are kept.

    Args:
        items: reference to the titles of all items; None if no interest is a user's.

    Returns:
        Status -> number of interests without a verdict.
    """
    judge = config.labels.judge
    assert judge is not None, "the config checks it"
    as_json = isinstance(judge, OpenAIJudge) and not judge.logprobs
    parts = [part for owner in config.interests.owners for part in parts_of(store, owner)]
    made = map_tables(part_dataset(parts), _prompts, store=store, work=work, as_json=as_json, items=items)
    # into batches, which Ray joined on their way: each is a task of its own, whose counts come when it is done
    prompts = made.repartition(target_num_rows_per_block=BLOCK_ROWS if isinstance(judge, OpenAIJudge) else judge.batch_size)
    ask: Any = _judge_with_engine if isinstance(judge, VllmJudge) else _judge_with_endpoint
    counts, start, said = Counter[str](), time.monotonic(), 0.0
    for batch in ask(judge, prompts, work).iter_batches(batch_size=None, batch_format="pyarrow"):
        assert isinstance(batch, pa.Table)
        for row in batch.to_pylist():
            counts[row["status"]] += row["rows"]
        if (now := time.monotonic()) - said > SAY_SECONDS:
            said = now
            rate = counts.total() / max(now - start, 1e-9)
            say("interest_labels", f"judge {judge.name}: {counts.total()} answers, {rate:.1f} a second, {dict(counts)}")
    return {status: count for status, count in counts.items() if status != "ok"}


def _judge_with_endpoint(judge: OpenAIJudge, prompts: Dataset, work: str) -> Dataset:
    return prompts.map_batches(
        _Ask,
        batch_size=BLOCK_ROWS,
        batch_format="pyarrow",
        fn_constructor_args=(judge, api_key(judge), work),
        compute=ActorPoolStrategy(size=1),
        num_cpus=0.1,
    )


def _judge_with_engine(judge: VllmJudge, prompts: Dataset, work: str) -> Dataset:
    # the guide leaves only tokens that begin a choice, so the first token's log-probabilities are those of the choice
    guide = {"structured_outputs": {"choice": list(CHOICES)}, "temperature": 0.0, "max_tokens": 1, "logprobs": TOP_TOKENS}
    return run_engine(judge, prompts, guide, partial(_keep, work=work))


def _keep(prompts: pa.Table, answers: list[Answer], work: str) -> pa.Table:
    first = [one.output.outputs[0].logprobs[0].values() if one.output else () for one in answers]
    given = [yes_probability((token.decoded_token or "", token.logprob) for token in tokens) for tokens in first]
    both = zip(answers, given, strict=True)
    reasons = [
        f"error: {one.error}"[:300] if one.error else "unparsable: neither yes nor no" if p is None else None for one, p in both
    ]
    verdicts = {name: prompts[name] for name in KEY} | {"probability": given, "reason": reasons}
    return keep_verdicts(pa.table(verdicts, schema=JUDGED), work)


def _prompts(parts: pa.Table, store: Store, work: str, as_json: bool, items: Any) -> Iterator[pa.Table]:
    """Make the chat, as JSON, of every interest of some parts that has no verdict yet."""
    for part in parts_in(parts):
        is_missing, start = np.isnan(read_votes("judge", store, part, work)), 0
        titles = ray.get(items) if part.owner == "user" else None
        for interests, texts in labelled_texts(store, part, titles, BLOCK_ROWS):
            flat = flat_interests(interests)
            missing = flat.filter(pa.array(is_missing[start : start + len(flat)]))
            start += len(flat)
            rows = zip(missing["interest"].to_pylist(), missing["row"].to_pylist(), strict=True)
            messages = [json.dumps(judge_messages(part.owner, interest, texts[row], as_json)) for interest, row in rows]
            numbered = missing.append_column("part", pa.array([part.number] * len(missing), pa.int32()))
            yield numbered.select([*KEY]).append_column("messages", pa.array(messages, pa.string()))


class _Ask:
    """Send batches of prompts to an endpoint, and write each one's verdicts before the next is sent."""

    def __init__(self, judge: OpenAIJudge, key: str, work: str) -> None:
        self.judge, self.key, self.work, self.pace = judge, key, work, Pace(judge.requests_per_minute)

    def __call__(self, prompts: pa.Table) -> pa.Table:
        conversations: list[list[dict[str, Any]]] = [json.loads(text) for text in prompts["messages"].to_pylist()]
        fields = endpoint_fields(self.judge)
        answers = ask_endpoint(self.judge, self.key, conversations, self.pace, fields=fields, read=read_verdict)
        given = [float(one.response) if one.status is None and one.response else None for one in answers]
        reasons = [f"{one.status}: {one.reason}" if one.status else None for one in answers]
        verdicts = pa.table({name: prompts[name] for name in KEY} | {"probability": given, "reason": reasons}, schema=JUDGED)
        return keep_verdicts(verdicts, self.work)
