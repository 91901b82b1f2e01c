"""The vLLM engine inside Ray Data: prompts in, guided answers out, no row lost."""

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from ray.data import Dataset

from digr.config.interests import VllmMiner
from digr.interests.ledger import raw_responses
from digr.interests.prompts import RESPONSE_SCHEMA, Owner, prompt_modality, prompt_version
from jobs.ledger_tasks import map_tables

KEPT = ("owner", "owner_id", "request_digest", "modality", "image_reason")
"""Columns of a prompt that travel with its answer."""
CPU_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1"}
"""Environment of an engine on CPU: gigabytes of its key-value cache."""


def reasons_of(prompts: pa.Table, reasons: list[str | None]) -> list[str | None]:
    """Join why an image is missing with what else is to say of a row."""
    both = zip(prompts["image_reason"].to_pylist(), reasons, strict=True)
    return ["; ".join(part for part in pair if part) or None for pair in both]


def engine_kwargs(miner: VllmMiner) -> dict[str, Any]:
    """Return the arguments of a miner's engine, without its model."""
    engine: dict[str, Any] = {"max_model_len": miner.max_model_len, "tensor_parallel_size": miner.tensor_parallel}
    # a guided model may otherwise pad its JSON with blanks until its tokens are used up
    engine["structured_outputs_config"] = {"backend": "xgrammar", "disable_any_whitespace": True}
    return engine | ({"enforce_eager": True} if miner.on_cpu else {})


def sampling_params(miner: VllmMiner) -> dict[str, Any]:
    """Return the arguments of a miner's `SamplingParams`; every answer is held to the JSON schema."""
    guide = {"json": json.dumps(RESPONSE_SCHEMA)}
    return {"temperature": miner.temperature, "max_tokens": miner.max_tokens, "structured_outputs": guide}


def generate(miner: VllmMiner, owner: Owner, prompts: Dataset) -> Dataset:
    """Return the raw responses of a miner to prompts."""
    returned = ("generated_text", "num_input_tokens", "num_generated_tokens")
    images = prompt_modality(owner, miner.modality) != "text"
    generated = run_engine(
        miner, prompts, sampling_params(miner), [*KEPT], lambda row: {name: row[name] for name in returned}, images
    )
    return map_tables(generated, _from_engine, owner=owner, miner=miner)


def run_engine(
    miner: VllmMiner,
    prompts: Dataset,
    sampling: dict[str, Any],
    kept: list[str],
    read: Callable[[dict[str, Any]], dict[str, Any]],
    images: bool = False,
) -> Dataset:
    """Run the engine over prompts; a row that fails comes back with `__inference_error__` instead of killing the job.

    Args:
        sampling: arguments of `SamplingParams`.
        kept: columns of a prompt that travel with its answer.
        read: makes further columns of the engine's output.
        images: whether the chats have images.
    """
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    cpu: dict[str, Any] = {}
    if miner.on_cpu:
        cpu = {"placement_group_config": {"bundles": [{"CPU": 1}]}, "runtime_env": {"env_vars": CPU_ENV}}
    config = vLLMEngineProcessorConfig(
        model_source=miner.model,
        engine_kwargs=engine_kwargs(miner),
        concurrency=miner.concurrency,
        batch_size=miner.batch_size,
        should_continue_on_error=True,
        log_engine_metrics=False,
        # one process less each: the engine detokenises anyway, and on CPU nothing waits for its tokeniser
        tokenize_stage=not miner.on_cpu,
        detokenize_stage=False,
        prepare_multimodal_stage=images,
        **cpu,
    )

    def to_engine(row: dict[str, Any]) -> dict[str, Any]:
        return {"messages": json.loads(row["messages"]), "sampling_params": sampling}

    def from_engine(row: dict[str, Any]) -> dict[str, Any]:
        return {name: row[name] for name in kept} | read(row)

    return build_processor(config, preprocess=to_engine, postprocess=from_engine)(prompts)


def _from_engine(rows: pa.Table, owner: Owner, miner: VllmMiner) -> pa.Table:
    errors = [text or None for text in rows["__inference_error__"].to_pylist()]
    generated = rows["num_generated_tokens"].to_pylist()
    cut = ["stopped at max_tokens" if tokens >= miner.max_tokens else None for tokens in generated]
    return raw_responses(
        rows,
        miner.name,
        prompt_version(owner, miner.modality),
        rows["modality"].to_pylist(),
        response=[None if error else text for error, text in zip(errors, rows["generated_text"].to_pylist(), strict=True)],
        status=["error" if error else None for error in errors],
        reason=reasons_of(rows, [error or note for error, note in zip(errors, cut, strict=True)]),
        input_tokens=rows["num_input_tokens"].to_pylist(),
        output_tokens=generated,
    )
