"""The judge: a language model that says whether an interest is to be trusted, and how probable its yes is (RLDI).

The prompt's words and its version change together.
"""

import json
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from digr.config.interests import OpenAIJudge
from digr.models.endpoint import Answer, read_completion

JUDGE_VERSION = "judge-v1"
CHOICES = ("yes", "no")
JUDGED = pa.schema(
    [
        pa.field("owner", pa.string(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("owner_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("probability", pa.float64()),
        pa.field("reason", pa.string()),
    ]
)
"""One row per verdict; where the probability is missing, `reason` says why."""
KEY = ("owner", "part", "owner_id", "rank")
"""Columns that say which interest a verdict is about, and in which part of `interests` it is."""
TOP_TOKENS = 20
"""Most probable first tokens asked for."""
VERDICT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": list(CHOICES)}},
    "required": ["answer"],
    "additionalProperties": False,
}

_RULES = (
    "You check interests that were proposed as motives behind {owner}. Answer yes only if the interest is specific (it names a "
    "motive, project or usage context, not something true of anything), actionable (it would lead the same person to other "
    "products) and grounded in the text you are shown. Otherwise answer no."
)
_OWNERS = {"item": ("buying a product", "Product"), "user": ("what a person chose", "Products chosen, newest first")}


def judge_messages(owner: Literal["item", "user"], interest: str, text: str, as_json: bool = False) -> list[dict[str, str]]:
    """Return the chat that asks for one verdict.

    Args:
        as_json: ask for an object of VERDICT_SCHEMA instead of one word.
    """
    motive, heading = _OWNERS[owner]
    form = (
        'Answer with one JSON object: {"answer": "yes"} or {"answer": "no"}.' if as_json else "Answer with one word: yes or no."
    )
    return [
        {"role": "system", "content": f"{_RULES.format(owner=motive)} {form}"},
        {"role": "user", "content": f"{heading}:\n{text}\n\nInterest: {interest}"},
    ]


def yes_probability(tokens: Iterable[tuple[str, float]]) -> float | None:
    """Return P(yes) / (P(yes) + P(no)) from the most probable first tokens and their log-probabilities.

    A token counts for the word it begins, case and blanks aside; None where no token begins either.
    """
    mass = dict.fromkeys(CHOICES, 0.0)
    for token, log_probability in tokens:
        word = token.strip().lower()
        for choice in CHOICES:
            if word and choice.startswith(word):
                mass[choice] += float(np.exp(log_probability))
    total = sum(mass.values())
    return mass["yes"] / total if total > 0 else None


def endpoint_fields(judge: OpenAIJudge) -> dict[str, Any]:
    """Return what a request to an endpoint asks beside the messages."""
    if judge.logprobs:
        return {"logprobs": True, "top_logprobs": TOP_TOKENS}
    schema = {"name": "verdict", "schema": VERDICT_SCHEMA, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}} if judge.json_schema else {}


def read_verdict(body: Any) -> Answer:
    """Read a completion; the response of an answer without status is the probability of yes, as text.

    Log-probabilities decide where there are any, else the words: yes is 1, no is 0, alone or as VERDICT_SCHEMA.
    """
    answer = read_completion(body)
    if answer.status is not None:
        return answer
    probability = _from_logprobs(body)
    if probability is None:
        probability = _from_text(answer.response or "")
    if probability is None:
        return answer._replace(status="unparsable", reason=f"neither yes nor no: {answer.response!r}"[:300])
    return answer._replace(response=repr(probability))


def _from_logprobs(body: Any) -> float | None:
    try:
        first = body["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return yes_probability([(str(one["token"]), float(one["logprob"])) for one in first])
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _from_text(text: str) -> float | None:
    try:
        found = json.loads(text)
        text = found.get("answer", "") if isinstance(found, dict) else text
    except (ValueError, RecursionError):
        pass
    word = str(text).strip().strip(".!\"'").lower()
    return {"yes": 1.0, "no": 0.0}.get(word)
