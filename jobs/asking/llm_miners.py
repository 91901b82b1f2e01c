"""Miners that ask a language model: vLLM on this cluster, or an endpoint that speaks the OpenAI protocol."""

import json
from functools import partial
from typing import Any

import pyarrow as pa
from ray.data import ActorPoolStrategy, Dataset

from digr.config import Config
from digr.config.interests import OpenAIMiner, VllmMiner
from digr.interests.images import show_images
from digr.interests.ledger import raw_responses
from digr.interests.prompts import RESPONSE_SCHEMA, Owner, chat_messages, prompt_modality, prompt_version
from digr.models.endpoint import Answer as EndpointAnswer
from digr.models.endpoint import Pace, api_key, ask_endpoint
from jobs.asking import budget
from jobs.asking.ledger_tasks import map_tables
from jobs.asking.sink import Sink, write
from jobs.asking.vllm_engine import Answer, run_engine

NOT_ASKED = EndpointAnswer(None, "error")
"""The answer where a chat lacks an image that may come: an error, so that it is asked again."""
KEPT = ("owner", "owner_id", "request_digest", "modality", "image_reason")
"""Columns of a prompt that travel with its chat."""


def answer_with_model(config: Config, owner: Owner, miner: VllmMiner | OpenAIMiner, missing: Dataset, sink: Sink) -> Dataset:
    """Write the responses of a language model to the missing requests, as far as the budget goes; returns their counts."""
    rows = miner.batch_size if isinstance(miner, VllmMiner) else max(64, 4 * miner.concurrency)
    limits = {"max_bytes": config.interests.max_image_bytes, "max_side": config.interests.max_image_side}
    if sink.meter is not None or miner.modality != "text":  # a budget admits, and images are fetched, batch by batch
        missing = missing.repartition(target_num_rows_per_block=rows)
    prompts = map_tables(budget.gate(missing, sink.meter, miner), _with_messages, miner=miner, limits=limits)
    # Ray joins blocks on their way; a batch is a task of its own again, so that its counts come when it is done
    prompts = prompts.repartition(target_num_rows_per_block=rows)
    if isinstance(miner, VllmMiner):
        return run_engine(miner, prompts, sampling_params(miner), partial(_keep, owner=owner, miner=miner, sink=sink))
    return prompts.map_batches(
        _Ask,
        batch_size=rows,
        batch_format="pyarrow",
        fn_constructor_args=(owner, miner, api_key(miner), sink),
        compute=ActorPoolStrategy(size=1),  # one, because the rate limit is its own
        num_cpus=0.1,
    )


def sampling_params(miner: VllmMiner) -> dict[str, Any]:
    """Return the arguments of a miner's `SamplingParams`; every answer is held to the JSON schema."""
    guide = {"json": json.dumps(RESPONSE_SCHEMA)}
    return {"temperature": miner.temperature, "max_tokens": miner.max_tokens, "structured_outputs": guide}


def _with_messages(requests: pa.Table, miner: VllmMiner | OpenAIMiner, limits: dict[str, int]) -> pa.Table:
    """Add each request's chat as JSON, what it really shows, and why its image is missing; no chat where the image may come."""
    owners, texts = requests["owner"].to_pylist(), requests["text"].to_pylist()
    sees = [prompt_modality(owner, miner.modality) != "text" for owner in owners]
    uris = [uri if seen else None for uri, seen in zip(requests["image_uri"].to_pylist(), sees, strict=True)]
    images = show_images(uris, **limits) if any(sees) else [None] * len(texts)
    messages, shown, reasons = [], [], []
    for owner, text, seen, image in zip(owners, texts, sees, images, strict=True):
        url = image.url if seen and image else None
        transient = bool(seen and image and image.transient)
        messages.append(None if transient else json.dumps(chat_messages(owner, miner.modality, text, url)))
        shown.append(miner.modality if url else "text")
        reasons.append(image.reason if seen and image else None)
    columns = {"messages": messages, "modality": shown, "image_reason": pa.array(reasons, pa.string())}
    for name, values in columns.items():
        requests = requests.append_column(name, values if isinstance(values, pa.Array) else pa.array(values, pa.string()))
    return requests.select([*KEPT, "messages"])


class _Ask:
    """Send batches of prompts to an endpoint, and write each one's answers before the next is sent: they were paid for."""

    def __init__(self, owner: Owner, miner: OpenAIMiner, key: str, sink: Sink):
        self.miner, self.key, self.version = miner, key, prompt_version(owner, miner.modality)
        self.pace, self.sink = Pace(miner.requests_per_minute), sink

    def __call__(self, prompts: pa.Table) -> pa.Table:
        miner = self.miner
        schema = {"name": "interests", "schema": RESPONSE_SCHEMA, "strict": True}
        fields = {"response_format": {"type": "json_schema", "json_schema": schema}} if miner.json_schema else {}
        texts = prompts["messages"].to_pylist()
        given = iter(ask_endpoint(miner, self.key, [json.loads(text) for text in texts if text], self.pace, fields=fields))
        answers = [next(given) if text else NOT_ASKED for text in texts]
        prices = miner.usd_per_million_input_tokens, miner.usd_per_million_output_tokens
        raw = raw_responses(
            prompts,
            miner.name,
            self.version,
            prompts["modality"].to_pylist(),
            response=[one.response for one in answers],
            status=[one.status for one in answers],
            reason=_reasons(prompts, [one.reason for one in answers]),
            input_tokens=[one.input_tokens for one in answers],
            output_tokens=[one.output_tokens for one in answers],
            cost_usd=[(one.input_tokens * prices[0] + one.output_tokens * prices[1]) / 1e6 for one in answers],
        )
        return write(raw, self.sink)


def _keep(prompts: pa.Table, answers: list[Answer], owner: Owner, miner: VllmMiner, sink: Sink) -> pa.Table:
    written = [len(one.output.outputs[0].token_ids) if one.output else 0 for one in answers]
    cut = ["stopped at max_tokens" if tokens >= miner.max_tokens else None for tokens in written]
    raw = raw_responses(
        prompts,
        miner.name,
        prompt_version(owner, miner.modality),
        prompts["modality"].to_pylist(),
        response=[one.output.outputs[0].text if one.output else None for one in answers],
        status=[None if one.output else "error" for one in answers],
        reason=_reasons(prompts, [one.error or note for one, note in zip(answers, cut, strict=True)]),
        input_tokens=[len(one.output.prompt_token_ids) if one.output else 0 for one in answers],
        output_tokens=written,
    )
    return write(raw, sink)


def _reasons(prompts: pa.Table, reasons: list[str | None]) -> list[str | None]:
    """Join why an image is missing with what else is to say of a row."""
    both = zip(prompts["image_reason"].to_pylist(), reasons, strict=True)
    return ["; ".join(part for part in pair if part) or None for pair in both]
