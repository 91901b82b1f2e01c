"""The budget of a run inside Ray: a small actor that admits requests of all workers; used only if there is a cap."""

import asyncio
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from digr.artifacts import Store
from digr.config.interests import InterestsConfig, ReplayMiner
from digr.interests.ledger import LEDGER, VERDICTS, spent_so_far
from digr.interests.spending import Budget, Spending


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


def open_meter(interests: InterestsConfig, store: Store) -> Any:
    """Return a handle of the run's meter, which starts from the cost of miners and judge so far; None without a cap."""
    caps = Spending(interests.max_tokens_total, interests.max_usd)
    if not any(caps):
        return None
    free = [miner.name for miner in interests.miners if isinstance(miner, ReplayMiner)]
    spent = spent_so_far(store.uri(LEDGER), free).plus(spent_so_far(store.uri(VERDICTS)))
    return ray.remote(_Meter).options(num_cpus=0).remote(caps, spent)


def settle(meter: Any, rows: pa.Table) -> None:
    """Report the real cost of rows to the meter."""
    if meter is not None and len(rows):
        tokens = pc.sum(rows["input_tokens"]).as_py() + pc.sum(rows["output_tokens"]).as_py()
        real = Spending(tokens, pc.sum(rows["cost_usd"]).as_py())
        ray.get(meter.settle.remote(rows["request_digest"].to_pylist(), real))


def check_budget(meter: Any, interests: InterestsConfig, num_left: int) -> None:
    """Stop the job if the budget is used up.

    Raises:
        ValueError: the budget stopped requests; the message has the cost and how to continue.
    """
    spent, stopped = ray.get(meter.state.remote()) if meter is not None else (Spending(), False)
    if stopped:
        raise ValueError(
            f"interests: stopped at the budget: {spent.tokens:.0f} tokens and {spent.usd:.4f} USD are spent of "
            f"interests.max_tokens_total={interests.max_tokens_total} and interests.max_usd={interests.max_usd} (0: no cap), "
            f"and {num_left} requests are still to ask. All answers are kept: raise the cap and run the job again"
        )
