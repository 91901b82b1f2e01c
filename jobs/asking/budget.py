"""The budget of a run inside Ray: one small actor that every worker asks before it asks a model, only where there is a cap."""

import asyncio
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Dataset

from digr.config.interests import InterestsConfig, OpenAIMiner, ReplayMiner, VllmMiner
from digr.interests.ledger import spent_so_far
from digr.interests.spending import Budget, Spending, worst_cases


class _Meter:
    """A `Budget` that lets a caller wait for answers in flight."""

    def __init__(self, caps: Spending, spent: Spending):
        self.budget = Budget(caps, spent)

    async def admit(self, worst: dict[str, Spending]) -> list[str]:
        while (admitted := self.budget.admit(worst)) is None:
            await asyncio.sleep(0.1)
        return admitted

    async def settle(self, requests: list[str], real: Spending) -> None:
        self.budget.settle(requests, real)

    async def state(self) -> tuple[Spending, bool]:
        return self.budget.spent, self.budget.stopped


def open_meter(interests: InterestsConfig, uri: str) -> Any:
    """Return a handle of the run's meter, which starts from what the ledger holds; None where nothing is capped."""
    caps = Spending(interests.max_tokens_total, interests.max_usd)
    if not any(caps):
        return None
    free = [miner.name for miner in interests.miners if isinstance(miner, ReplayMiner)]
    return ray.remote(_Meter).options(num_cpus=0).remote(caps, spent_so_far(uri, free))


def gate(requests: Dataset, meter: Any, miner: VllmMiner | OpenAIMiner) -> Dataset:
    """Let through the requests that the budget allows, batch by batch in their order; without a meter, all."""
    if meter is None:
        return requests
    arguments: dict[str, Any] = {"meter": meter, "miner": miner}
    admit: Any = _admit
    return requests.map_batches(admit, batch_size=None, batch_format="pyarrow", fn_kwargs=arguments, concurrency=1, num_cpus=0.1)


def _admit(requests: pa.Table, meter: Any, miner: VllmMiner | OpenAIMiner) -> pa.Table:
    admitted = ray.get(meter.admit.remote(worst_cases(requests, miner)))
    return requests.filter(pc.is_in(requests["request_digest"], pa.array(admitted, pa.string())))


def settle(meter: Any, responses: pa.Table) -> None:
    """Tell the meter what some answers really spent."""
    if meter is not None and len(responses):
        tokens = pc.sum(responses["input_tokens"]).as_py() + pc.sum(responses["output_tokens"]).as_py()
        real = Spending(tokens, pc.sum(responses["cost_usd"]).as_py())
        ray.get(meter.settle.remote(responses["request_digest"].to_pylist(), real))


def check(meter: Any, interests: InterestsConfig, num_left: int) -> None:
    """Stop the job where the budget stopped the asking.

    Raises:
        ValueError: it did; the message says what was spent and how to go on.
    """
    spent, stopped = ray.get(meter.state.remote()) if meter is not None else (Spending(), False)
    if stopped:
        raise ValueError(
            f"interests: stopped at the budget: {spent.tokens:.0f} tokens and {spent.usd:.4f} USD are spent of "
            f"interests.max_tokens_total={interests.max_tokens_total} and interests.max_usd={interests.max_usd} (0: no cap), "
            f"and {num_left} requests are still to ask. What came back is kept: raise the cap and run the job again"
        )
