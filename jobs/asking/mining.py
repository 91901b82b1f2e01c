"""Asking the miners: what the ledger lacks of each, their answers followed while they come, and written."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.interests import Miner, VllmMiner
from digr.interests import ledger
from digr.interests.prompts import Owner
from digr.interests.spending import Spending, progress_text
from jobs.asking import budget
from jobs.asking.ledger_tasks import Plan, join, make_plan, map_tables, only
from jobs.asking.llm_miners import answer_with_model
from jobs.asking.miners import answer, item_lines_of, requests_of, together
from jobs.asking.sink import Sink
from jobs.runtime.session import say

STAGE = "interests"
_SAY_SECONDS = 5.0
_JOIN_BLOCKS = 512
"""Parts after which the small ones are joined, so that also a killed run's ledger is read fast."""


def ask(config: Config, store: Store, owner: Owner, sink: Sink) -> tuple[Any, int]:
    """Ask each miner for what the ledger lacks; returns a reference to all its requests' digests, and their number.

    Raises:
        ValueError: the budget stopped it.
    """

    def plan(miner: Miner, requests: Any) -> Plan:
        found = make_plan(requests, sink.uri, config.interests.retry_failed)
        num_done = found.num_wanted - found.num_missing
        say(STAGE, f"{miner.name}: {found.num_wanted} {owner} requests, {num_done} answered, {found.num_missing} to ask")
        return found

    ray.data.DataContext.get_current().execution_options.preserve_order = False  # a slow batch holds none back
    items = item_lines_of(config, store) if owner == "user" else None
    made: list[Future[Plan]] = []
    with ThreadPoolExecutor(1) as background:
        for miners in together(config.interests.miners):
            answers, plans = [], {}
            for miner in miners:
                requests = requests_of(config, store, owner, miner, items)
                made.append(background.submit(plan, miner, requests))
                if isinstance(miner, VllmMiner) and not artifacts.list_parts(sink.uri):
                    # an empty ledger lacks all: an engine takes longer to start than the plan to be made
                    answers.append(answer_with_model(config, owner, miner, requests, sink))
                elif (found := made[-1].result()).num_missing:
                    chosen = map_tables(requests, only, numbers=found.missing)
                    answers.append(answer(config, owner, miner, chosen, requests, found.num_wanted, sink))
                else:
                    continue
                plans[miner.name] = made[-1]
            if answers:
                budget.check(sink.meter, config.interests, follow(answers, sink.uri, plans))
    every = [one.result() for one in made]
    return join.remote(*(one.wanted for one in every)), sum(one.num_wanted for one in every)


def follow(answers: Sequence[Dataset], uri: str, plans: Mapping[str, Future[Plan]]) -> int:
    """Let some miners answer at once, with progress lines; returns how many of the missing answers did not come.

    Args:
        answers: what `sink.write` returned of each miner's batches.
        plans: of each miner; waited for when the first answers are there.
    """
    written = answers[0].union(*answers[1:]) if len(answers) > 1 else answers[0]
    join_parts: Any = ray.remote(ledger.join_parts)
    start, joined = time.monotonic(), ray.put(None)
    spoken, spent = dict.fromkeys(plans, 0.0), dict.fromkeys(plans, Spending())
    counts, first = {name: Counter[str]() for name in plans}, dict[str, tuple[int, float]]()
    for number, batch in enumerate(written.iter_batches(batch_size=None, batch_format="pyarrow"), 1):
        assert isinstance(batch, pa.Table)
        if number % _JOIN_BLOCKS == 0:
            ray.get(joined)
            joined = join_parts.remote(uri)
        for row in batch.to_pylist():
            name, now = row["miner"], time.monotonic()
            counts[name][row["status"]] += row["rows"]
            spent[name] = spent[name].plus(Spending(row["tokens"], row["usd"]))
            expected, done = plans[name].result().num_missing, counts[name].total()
            began = first.setdefault(name, (done, now - start))
            if done >= expected or now - spoken[name] > _SAY_SECONDS:
                spoken[name] = now
                text = progress_text(done, expected, now - start, spent[name], began)
                say(STAGE, f"{name}: {text}, {dict(counts[name])}")
    ray.get(joined)
    ray.get(join_parts.remote(uri))
    return sum(one.result().num_missing for one in plans.values()) - sum(one.total() for one in counts.values())
