"""The vLLM engine inside Ray Data: chats in, guided answers out, no row lost.

An actor asks vLLM's asynchronous engine itself. `ray.data.llm` spreads the same over a process each for chat templates and the
engine, copies every prompt and its tokens between them and reads every token as it comes: on two cores a job with it took a third
longer than `vllm.LLM.chat` alone (benchmarks/mining_overhead.py).
"""

import asyncio
import json
import os
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa
from ray.data import ActorPoolStrategy, Dataset

from digr.config.interests import VllmMiner

CPU_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1"}
"""Environment of an engine on CPU: gigabytes of its key-value cache."""
BATCHES_IN_FLIGHT = 8
"""Batches an engine works on at once."""
BATCHES_WAITING = 4
"""Batches that wait beside an engine, so that it never waits for one."""


class Answer(NamedTuple):
    """What the engine says to one prompt: vLLM's `RequestOutput`, or why there is none."""

    output: Any
    error: str | None = None


def engine_kwargs(miner: VllmMiner) -> dict[str, Any]:
    """Return the arguments of a miner's engine, without its model."""
    engine: dict[str, Any] = {"max_model_len": miner.max_model_len, "tensor_parallel_size": miner.tensor_parallel}
    # a guided model may otherwise pad its JSON with blanks until its tokens are used up
    engine["structured_outputs_config"] = {"backend": "xgrammar", "disable_any_whitespace": True}
    return engine | ({"enforce_eager": True} if miner.on_cpu else {})


def run_engine(
    miner: VllmMiner, prompts: Dataset, sampling: dict[str, Any], keep: Callable[[pa.Table, list[Answer]], pa.Table]
) -> Dataset:
    """Run engines over the chats of prompts; returns what `keep` made of each batch and its answers.

    A batch is kept as soon as its last answer is there. An engine works on several at once, so that it stays full, and a
    kill loses what these have in common: at most `BATCHES_IN_FLIGHT` batches an engine.

    Args:
        prompts: rows with `messages`, chats as JSON.
        sampling: arguments of `SamplingParams`.
        keep: runs inside the engine's process.
    """
    needs: dict[str, Any] = {"num_cpus": 1} if miner.on_cpu else {"num_gpus": miner.tensor_parallel}
    return prompts.map_batches(
        _Engine,
        batch_size=miner.batch_size,
        batch_format="pyarrow",
        fn_constructor_args=(miner, sampling, keep),
        compute=ActorPoolStrategy(
            min_size=1, max_size=miner.concurrency, max_tasks_in_flight_per_actor=BATCHES_IN_FLIGHT + BATCHES_WAITING
        ),
        max_concurrency=BATCHES_IN_FLIGHT,
        **needs,
    )


class _Engine:
    """One engine, in a process of its own below this one, which makes tokens of chats and text of tokens."""

    def __init__(self, miner: VllmMiner, sampling: dict[str, Any], keep: Callable[[pa.Table, list[Answer]], pa.Table]):
        os.environ.update(CPU_ENV if miner.on_cpu else {})
        from vllm import AsyncEngineArgs, SamplingParams
        from vllm.renderers import ChatParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(miner.model, disable_log_stats=True, **engine_kwargs(miner))
        # LLM_CLASS has the batch sizes of vLLM's own offline class, which are twice those of a server
        self.engine = AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
        guide = StructuredOutputsParams(**sampling["structured_outputs"])
        last_only = RequestOutputKind.FINAL_ONLY
        self.sampling = SamplingParams(**sampling | {"structured_outputs": guide, "output_kind": last_only})
        self.chat = ChatParams(chat_template_kwargs={"add_generation_prompt": True, "tokenize": False})
        self.keep = keep

    async def __call__(self, prompts: pa.Table) -> pa.Table:
        answers = await asyncio.gather(*map(self._answer, prompts["messages"].to_pylist()))
        return await asyncio.to_thread(self.keep, prompts, answers)

    async def _answer(self, messages: str | None) -> Answer:
        if messages is None:
            return Answer(None)
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            _, rendered = await self.engine.renderer.render_chat_async([json.loads(messages)], self.chat)
            outputs = self.engine.generate(rendered[0], self.sampling, uuid.uuid4().hex)
            return Answer([one async for one in outputs][-1])
        except EngineDeadError:
            os._exit(1)  # so that Ray starts another engine and gives it the batch: this one would fail all that come
        except Exception as error:  # noqa: BLE001  whatever it is, it is one row's fault: a text too long, an odd image
            return Answer(None, f"{type(error).__name__}: {error}")

    def __del__(self) -> None:
        if hasattr(self, "engine"):
            self.engine.shutdown()
