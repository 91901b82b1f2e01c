"""Ask an endpoint that speaks the OpenAI chat protocol, many requests at once."""

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import openai

from digr.config.interests import OpenAIMiner


class Answer(NamedTuple):
    """What came back for one request; `status` is None where the text decides."""

    response: str | None
    status: str | None = None
    reason: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0


def api_key(miner: OpenAIMiner) -> str:
    """Return the key of a miner's endpoint from the environment variable its config names.

    Raises:
        ValueError: the variable is empty.
    """
    key = os.environ.get(miner.api_key_env, "")
    if not key:
        raise ValueError(
            f"miner {miner.name}: environment variable {miner.api_key_env} is empty; set it to the key of {miner.base_url} "
            f"(any word where the endpoint needs none)"
        )
    return key


class Pace:
    """Spread requests evenly, `per_minute` of them; 0 does not hold any back."""

    def __init__(self, per_minute: float):
        self.seconds = 60 / per_minute if per_minute else 0.0
        self.next_at = 0.0

    async def wait(self, request: Any = None) -> None:
        """Wait for the next free moment."""
        now = time.monotonic()
        moment = max(now, self.next_at)
        self.next_at = moment + self.seconds
        if moment > now:
            await asyncio.sleep(moment - now)


def ask_endpoint(
    miner: OpenAIMiner,
    key: str,
    conversations: Sequence[list[dict[str, Any]]],
    pace: Pace,
    *,
    fields: Mapping[str, Any],
    read: Callable[[Any], Answer] | None = None,
) -> list[Answer]:
    """Send chat conversations, `miner.concurrency` in flight, and return the answers in their order.

    The client retries 408, 409, 429, 5xx and lost connections with growing pauses, and heeds Retry-After; what still
    fails is an answer of status "error".

    Args:
        pace: of the miner, kept between calls; it holds back every request that is sent, retries too.
        fields: what a request asks beside the messages, such as the JSON schema of its answer.
        read: makes an answer of a completion's body, if not `read_completion`.
    """
    return asyncio.run(_ask_all(miner, key, conversations, pace, fields, read or read_completion))


async def _ask_all(
    miner: OpenAIMiner,
    key: str,
    conversations: Sequence[list[dict[str, Any]]],
    pace: Pace,
    fields: Mapping[str, Any],
    read: Callable[[Any], Answer],
) -> list[Answer]:
    slots = asyncio.Semaphore(miner.concurrency)
    async with openai.AsyncOpenAI(
        base_url=miner.base_url,
        api_key=key,
        max_retries=miner.max_retries,
        timeout=miner.timeout_seconds,
        http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [pace.wait]}),
    ) as client:

        async def ask(messages: list[dict[str, Any]]) -> Answer:
            async with slots:
                return await _ask_one(client, miner, messages, fields, read)

        return list(await asyncio.gather(*(ask(messages) for messages in conversations)))


async def _ask_one(
    client: openai.AsyncOpenAI, miner: OpenAIMiner, messages: Any, fields: Mapping[str, Any], read: Callable[[Any], Answer]
) -> Answer:
    try:
        raw = await client.chat.completions.with_raw_response.create(
            model=miner.model, messages=messages, max_tokens=miner.max_tokens, temperature=miner.temperature, **fields
        )
        body = json.loads(raw.content)
    except openai.OpenAIError as error:
        return Answer(None, "error", f"{type(error).__name__}: {error}"[:300])
    except (ValueError, RecursionError) as error:
        return Answer(None, "error", f"the endpoint answered no JSON: {error}"[:300])
    return read(body)


def read_completion(body: Any) -> Answer:
    """Read the body of a chat completion; whatever does not have its form is an answer of status "error".

    "length" as finish reason means truncated, "content_filter" or a refusal means refused; a cut text keeps what the
    parser finds whole in it.
    """
    try:
        choice = body["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
        usage = body.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        if not isinstance(text, str | None):
            raise TypeError(f"content is {type(text).__name__}")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        return Answer(None, "error", f"not a chat completion: {type(error).__name__}: {error}"[:300])
    if refusal or finish == "content_filter":
        return Answer(text, "refused", str(refusal or "content filter")[:300], *tokens)
    return Answer(text, None, "stopped at max_tokens" if finish == "length" else None, *tokens)
