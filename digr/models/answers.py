"""The form of a language model's answer, and the answer itself, the same for vLLM and for endpoints."""

from collections.abc import Mapping
from typing import Any, NamedTuple

TOP_TOKENS = 20
"""Number of most probable first tokens that are requested."""
CUT = "stopped at max_tokens"
"""Reason of an answer that was longer than allowed."""


class AnswerForm(NamedTuple):
    """The form of an answer: JSON that follows a schema, or one of a few words with the probabilities of its first token."""

    name: str
    schema: Mapping[str, Any]
    words: tuple[str, ...] = ()


class Answer(NamedTuple):
    """The answer to one prompt; `status` is None if it follows from the text."""

    response: str | None
    status: str | None = None
    reason: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    first_tokens: tuple[tuple[str, float], ...] = ()
    """The most probable first tokens and their log-probabilities; empty if not requested or not given."""


def read_completion(body: Any) -> Answer:
    """Read the body of a chat completion; a body of any other form is an answer of status "error".

    Finish reason "length" means truncated (the parser keeps its complete interests); "content_filter" or a refusal means
    refused. If the content is empty, the text of `reasoning_content` or `reasoning` is the answer: servers put it there if
    the model ends without closing its reasoning.
    """
    try:
        choice = body["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        texts = [_text_of(message.get(name)) for name in ("content", "reasoning_content", "reasoning")]
        text = next((text for text in texts if text and text.strip()), texts[0])
        refusal = message.get("refusal")
        usage = body.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        return Answer(None, "error", f"not a chat completion: {type(error).__name__}: {error}"[:300])
    if refusal or finish == "content_filter":
        return Answer(text, "refused", str(refusal or "content filter")[:300], *tokens)
    return Answer(text, None, CUT if finish == "length" else None, *tokens, _first_tokens(choice))


def _text_of(content: Any) -> str | None:
    """Return the text of a content, which is a string or a list of parts; other parts than text are ignored."""
    if isinstance(content, list):
        return "".join(part if isinstance(part, str) else str(part.get("text") or "") for part in content)
    if not isinstance(content, str | None):
        raise TypeError(f"content is {type(content).__name__}")
    return content


def _first_tokens(choice: Any) -> tuple[tuple[str, float], ...]:
    try:
        first = choice["logprobs"]["content"][0]["top_logprobs"]
        return tuple((str(one["token"]), float(one["logprob"])) for one in first)
    except (KeyError, IndexError, TypeError, ValueError):
        return ()
