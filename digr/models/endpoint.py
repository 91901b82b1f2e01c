"""Ask an endpoint that speaks the OpenAI chat protocol, many requests at once."""

import asyncio
import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import openai

from digr.config.interests import EndpointModel, OpenAIJudge
from digr.models.answers import TOP_TOKENS, Answer, AnswerForm, read_completion

SCHEMA_LIMITS = ("minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum")
"""Keywords of a JSON schema that limit lengths and ranges."""
MAX_PROBES = 3
"""If this many first requests fail, no more are sent."""
_NEVER_MENDED = (401, 403, 404)
"""Statuses that every prompt would get: the key, the access, the address or the model's name is wrong."""


def config_key(model: EndpointModel) -> str:
    """Return the config key of a model."""
    return "labels.judge" if isinstance(model, OpenAIJudge) else f"interests.miners.{model.name}"


def api_key(model: EndpointModel) -> str:
    """Return the key of a model's endpoint from the environment variable its config names.

    Raises:
        ValueError: the variable is empty.
    """
    key = os.environ.get(model.api_key_env, "")
    if not key:
        raise ValueError(
            f"{config_key(model)}: environment variable {model.api_key_env} is empty; set it to the key of {model.base_url} "
            f"(any word if the endpoint needs no key)"
        )
    return key


def check_keys(models: Iterable[Any]) -> None:
    """Check that the environment has the key of every endpoint among the models, before any request.

    Raises:
        ValueError: as in `api_key`.
    """
    for model in models:
        if isinstance(model, EndpointModel):
            api_key(model)


def request_fields(model: EndpointModel, form: AnswerForm) -> dict[str, Any]:
    """Return the fields of every request apart from its messages: length, sampling and the form of the answer."""
    fields: dict[str, Any] = {"model": model.model, model.token_field: model.max_tokens}
    if model.temperature is not None:
        fields["temperature"] = model.temperature
    if model.reasoning_effort:
        fields["reasoning_effort"] = model.reasoning_effort
    if form.words:
        fields |= {"logprobs": True, "top_logprobs": TOP_TOKENS}
    elif model.json_schema:
        schema = _without_limits(form.schema) if model.plain_schema else form.schema
        named = {"name": form.name, "schema": schema, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": named}
    return fields | ({"extra_body": dict(model.extra_body)} if model.extra_body else {})


def _without_limits(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        return {key: _without_limits(value) for key, value in schema.items() if key not in SCHEMA_LIMITS}
    return [_without_limits(value) for value in schema] if isinstance(schema, list | tuple) else schema


class Pace:
    """Spreads requests evenly, `per_minute` of them; 0 means no limit."""

    def __init__(self, per_minute: float):
        self.seconds = 60 / per_minute if per_minute else 0.0
        self.next_at = 0.0

    async def wait(self, request: Any = None) -> None:
        """Wait until the next request may be sent."""
        now = time.monotonic()
        moment = max(now, self.next_at)
        self.next_at = moment + self.seconds
        if moment > now:
            await asyncio.sleep(moment - now)


class Endpoint:
    """One client of one endpoint, used from one event loop.

    Requests are sent one by one until the first is answered, so that requests that the endpoint never accepts cost nothing.

    Args:
        has_answered: whether the endpoint answered in an earlier run; then failures of the first prompts do not stop it.
    """

    def __init__(self, model: EndpointModel, key: str, form: AnswerForm, has_answered: bool = False):
        self.model, self.fields, self.has_answered = model, request_fields(model, form), has_answered
        self.slots, self.probing = asyncio.Semaphore(model.concurrency), asyncio.Lock()
        self.answered, self.num_failed = False, 0
        self.stopped: ValueError | None = None
        self.client = openai.AsyncOpenAI(
            base_url=model.base_url,
            api_key=key,
            max_retries=model.max_retries,
            timeout=model.timeout_seconds,
            # the pace applies to every request that is sent, also to retries
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [Pace(model.requests_per_minute).wait]}),
        )

    async def ask(self, messages: Any) -> Answer:
        """Send one chat as soon as fewer than `concurrency` are in flight.

        The client retries 408, 409, 429, 5xx and lost connections with growing pauses, and obeys Retry-After; after that, a
        failure is an answer of status "error".

        Raises:
            ValueError: all of the first requests failed, or the first was refused for a reason that applies to all.
        """
        async with self.slots:
            while not self.answered:
                async with self.probing:
                    if not self.answered:
                        return await self._probe(messages)
            return (await self._send(messages))[0]

    async def _probe(self, messages: Any) -> Answer:
        if self.stopped:
            raise self.stopped
        answer, error = await self._send(messages)
        self.num_failed += answer.status == "error"
        failed_all = self.num_failed == MAX_PROBES
        self.answered = answer.status != "error" or (failed_all and self.has_answered)
        advice = _advice(self.model, error)
        if advice or getattr(error, "status_code", 0) in _NEVER_MENDED or (failed_all and not self.has_answered):
            place = config_key(self.model)
            todo = f"set {place}.{advice}" if advice else f"check {place}.base_url, model and the key in {self.model.api_key_env}"
            first = "the first request" if self.num_failed == 1 else f"each of the first {self.num_failed} requests"
            self.stopped = ValueError(f"{place}: {self.model.base_url} failed {first}: {answer.reason}; {todo}")
            raise self.stopped
        return answer

    async def _send(self, messages: Any) -> tuple[Answer, openai.OpenAIError | None]:
        try:
            raw = await self.client.chat.completions.with_raw_response.create(messages=messages, **self.fields)
            return read_completion(json.loads(raw.content)), None
        except openai.OpenAIError as error:
            return Answer(None, "error", f"{type(error).__name__}: {error}"[:300]), error
        except (ValueError, RecursionError) as error:
            return Answer(None, "error", f"the endpoint's answer is not JSON: {error}"[:300]), None


def _advice(model: EndpointModel, error: openai.OpenAIError | None) -> str | None:
    """Return the config field to change, with its value, after a refusal of 400 or 422; None if the refusal names no field."""
    if not isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
        return None
    body: Mapping[str, Any] = error.body if isinstance(error.body, Mapping) else {}
    other = "max_completion_tokens" if model.token_field == "max_tokens" else "max_tokens"
    changes = dict.fromkeys(SCHEMA_LIMITS, "plain_schema = true") if not model.plain_schema else {}
    changes |= {model.token_field: f'token_field = "{other}"', "reasoning_effort": 'reasoning_effort = ""'}
    changes |= {} if model.temperature is None else {"temperature": "temperature: remove it, so that the endpoint's own holds"}
    changes |= dict.fromkeys(("logprobs", "top_logprobs"), "logprobs = false")
    changes |= dict.fromkeys(("response_format", "json_schema"), "json_schema = false")
    changes |= {name: f"extra_body without {name}" for name in model.extra_body}
    quoted = [name for name in changes if any(f"{mark}{name}{mark}" in str(error) for mark in "'\"`")]
    # a message may also quote the replacement, so the parameter at fault comes first, unless it is a keyword of a schema
    param = str(body.get("param") or "").split(".")[0]
    found = [name for name in quoted if name in SCHEMA_LIMITS] + [name for name in changes if name == param] + quoted
    return changes[found[0]] if found else None
