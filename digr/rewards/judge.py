"""The judge: a language model that answers whether an interest can be trusted, and with which probability (RLDI).

Whoever changes the words of the prompt must change its version.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from digr.artifacts import digest_of
from digr.config.interests import OpenAIJudge, VllmJudge
from digr.interests.summary import found_without
from digr.models.answers import Answer, AnswerForm

JUDGE_VERSION = "judge-v1"
CHOICES = ("yes", "no")
KEY = ("owner", "owner_id", "interest")
"""Columns that identify the interest of a verdict."""
JUDGED = pa.schema([pa.field(name, pa.string(), nullable=False) for name in KEY] + [pa.field("probability", pa.float64())])
"""One row per verdict."""
VERDICT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": list(CHOICES)}},
    "required": ["answer"],
    "additionalProperties": False,
}

_RULES = (
    "You check interests that were proposed as motives behind {owner}. Answer yes only if the interest is specific (it names a "
    "motive, project or usage context, not something true of anything), actionable (it would lead the same person to other "
    "products) and grounded in the {shown} you are shown. Otherwise answer no."
)
_OWNERS = {"item": ("buying a product", "Product"), "user": ("what a person chose", "Products chosen, newest first")}


def judge_form(judge: VllmJudge | OpenAIJudge) -> AnswerForm:
    """Return the form of a judge's answers: one of two words with its probability, or JSON if the endpoint gives none."""
    as_json = isinstance(judge, OpenAIJudge) and not judge.logprobs
    return AnswerForm("verdict", VERDICT_SCHEMA, () if as_json else CHOICES)


def judge_messages(
    owner: Literal["item", "user"], interest: str, text: str, form: AnswerForm, image_url: str | None = None
) -> list[dict[str, Any]]:
    """Return the chat that asks for one verdict.

    Args:
        form: from `judge_form`.
        image_url: a `data:` address of the item's image, placed before its text.
    """
    motive, heading = _OWNERS[owner]
    wanted = "one word: yes or no." if form.words else 'one JSON object: {"answer": "yes"} or {"answer": "no"}.'
    rules = _RULES.format(owner=motive, shown="image and text" if image_url else "text")
    words = f"{heading}:\n{text}\n\nInterest: {interest}"
    image = {"type": "image_url", "image_url": {"url": image_url}}
    content: Any = [image, {"type": "text", "text": words}] if image_url else words
    return [{"role": "system", "content": f"{rules} Answer with {wanted}"}, {"role": "user", "content": content}]


def needs_image(interests: pa.Table, image_miners: Sequence[str]) -> np.ndarray:
    """Return for each row of `interests` whether it was found only by miners that saw the item's image.

    Args:
        image_miners: the miners whose prompts show images; users have no image.
    """
    of_item = np.asarray(pc.equal(interests["owner"], "item"))
    return of_item & ~found_without(interests["miners"], image_miners)


def judge_requests(interests: pa.Table, texts: Sequence[str], images: Sequence[str | None], judge: dict[str, Any]) -> pa.Table:
    """Return one request per interest: the columns of a miner's request, and the interest.

    Args:
        texts: text of each row's owner.
        images: address of the image that is shown with each row, if any.
        judge: the judge's config as JSON values; fields that change only speed or price do not enter the digest.
    """
    decisive = "kind name model json_schema plain_schema logprobs max_tokens temperature reasoning_effort extra_body"
    chosen = {name: judge[name] for name in decisive.split() if name in judge}
    key = digest_of({"judge": chosen, "prompt": JUDGE_VERSION}).encode()
    columns: dict[str, Any] = {name: interests[name].to_pylist() for name in KEY}
    rows = zip(*columns.values(), texts, images, strict=True)
    digests = [hashlib.sha256(key + json.dumps(row).encode()).hexdigest()[:16] for row in rows]
    columns |= {"text": list(texts), "image_uri": list(images), "request_digest": digests}
    return pa.table(columns, schema=pa.schema({name: pa.string() for name in columns}))


def yes_probability(tokens: Iterable[tuple[str, float]]) -> float | None:
    """Return P(yes) / (P(yes) + P(no)) from the most probable first tokens and their log-probabilities.

    A token counts for the word that it begins, ignoring case and spaces; None if no token begins either word.
    """
    mass = dict.fromkeys(CHOICES, 0.0)
    for token, log_probability in tokens:
        word = token.strip().lower()
        for choice in CHOICES:
            if word and choice.startswith(word):
                mass[choice] += float(np.exp(log_probability))
    total = sum(mass.values())
    return mass["yes"] / total if total > 0 else None


def read_verdict(answer: Answer) -> tuple[Answer, float | None]:
    """Return an answer with its status, and the probability of yes if the answer has one.

    Log-probabilities are used if given, otherwise the words, alone or as VERDICT_SCHEMA: yes is 1, no is 0.
    """
    if answer.status is not None:
        return answer, None
    probability = yes_probability(answer.first_tokens)
    if probability is None:
        probability = _from_text(answer.response or "")
    if probability is None:
        cut = f"{answer.reason}; " if answer.reason else ""
        return answer._replace(status="unparsable", reason=f"{cut}neither yes nor no: {answer.response!r}"[:300]), None
    return answer._replace(status="ok"), probability


def _from_text(text: str) -> float | None:
    try:
        found = json.loads(text)
        text = found.get("answer", "") if isinstance(found, dict) else text
    except (ValueError, RecursionError):
        pass
    word = str(text).strip().strip(".!\"'").lower()
    return {"yes": 1.0, "no": 0.0}.get(word)
