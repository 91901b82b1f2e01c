"""Turn a miner's answer into a status and a clean list of interests, whatever the answer looks like.

Language models wrap JSON into fences, stop in the middle, refuse, or write prose. Nothing of that may raise: a failure
is a row with its status, and what can be recovered is recovered.
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from digr.interests.prompts import MAX_PHRASE_CHARS

MAX_INTERESTS = 20
"""Interests kept of one answer."""
_MAX_STARTS = 50
_REFUSAL = re.compile(
    r"\b(i['’]?m sorry|i am sorry|i can(?:no|['’])t|i cannot|i['’]?m (?:not able|unable)|i am (?:not able|unable)|"
    r"i won['’]?t|as an ai\b|unable to (?:assist|help|comply)|against my guidelines)",
    re.IGNORECASE,
)
_NOT_IN_A_PHRASE = re.compile(r"[^\w\s'&/+-]|_")
_OPENING = re.compile(r"[{\[]")
# models write line breaks and other control characters into strings, which strict JSON forbids
_DECODER = json.JSONDecoder(strict=False)


class Parsed(NamedTuple):
    """Status of an answer, its interests strongest first, and why it is not "ok"."""

    status: str
    interests: list[tuple[str, float | None]]
    reason: str | None = None


def normalise_phrase(phrase: str) -> str:
    """Return a phrase in its one comparable form: lower case, single spaces, no punctuation, at most 80 characters.

    >>> normalise_phrase("  Weekend trout-fishing!! ")
    'weekend trout-fishing'
    """
    text = unicodedata.normalize("NFKC", phrase.encode("utf-8", "ignore").decode()).lower()
    text = " ".join(_NOT_IN_A_PHRASE.sub(" ", text).split()).strip(" -'&/+")
    if len(text) > MAX_PHRASE_CHARS:
        text = text[: MAX_PHRASE_CHARS + 1].rpartition(" ")[0] or text[:MAX_PHRASE_CHARS]
    return text.strip(" -'&/+")


def parse_response(text: str | None) -> Parsed:
    r"""Parse one answer; never raises.

    Statuses: "ok" with at least one interest; "truncated" where the JSON stops in the middle (its whole interests are
    kept); "refused"; "empty" where there is no text or a well-formed answer lists nothing; "unparsable" otherwise.

    >>> parse_response('Sure! ```json\n{"interests": [{"interest": "Ice Fishing", "confidence": 1.5}]}\n```')
    Parsed(status='ok', interests=[('ice fishing', 1.0)], reason=None)
    """
    if text is None or not text.strip():
        return Parsed("empty", [], "no text")
    listed = _listed(text)
    if listed is not None:
        interests = clean_interests(listed)
        return Parsed("ok", interests) if interests else Parsed("empty", [], "the answer lists no interest")
    if "{" in text or "[" in text:
        interests = clean_interests(_whole_interests(text))
        if _is_cut_off(text):
            return Parsed("truncated", interests, f"the JSON stops after {len(interests)} whole interests")
        if not _REFUSAL.search(text):
            return Parsed("unparsable", [], "no JSON object with a list of interests")
    if _REFUSAL.search(text[:400]):
        return Parsed("refused", [], "the model declined")
    return Parsed("unparsable", [], "no JSON object with a list of interests")


def clean_interests(entries: Iterable[Any]) -> list[tuple[str, float | None]]:
    """Return normalised, unique (interest, confidence), strongest first; confidences are clipped to [0, 1] or None."""
    best: dict[str, float | None] = {}
    for entry in entries:
        phrase, confidence = (entry.get("interest"), entry.get("confidence")) if isinstance(entry, dict) else (entry, None)
        if not isinstance(phrase, str):
            continue
        phrase = normalise_phrase(phrase)
        if not any(letter.isalpha() for letter in phrase):
            continue
        value = _confidence(confidence)
        if phrase not in best or (value is not None and value > (best[phrase] or 0.0)):
            best[phrase] = value
    # a sort is stable: answers without confidences keep the model's own order
    return sorted(best.items(), key=lambda pair: -(pair[1] or 0.0))[:MAX_INTERESTS]


def _confidence(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else min(max(number, 0.0), 1.0)


def _listed(text: str) -> list[Any] | None:
    """Return the list of interests of the first JSON value that has one; prose before and after it does not matter."""
    for value in _json_values(text):
        if isinstance(value, dict) and isinstance(value.get("interests"), list):
            return value["interests"]
        if isinstance(value, list) and value and all(isinstance(entry, dict) and "interest" in entry for entry in value):
            return value
    return None


def _json_values(text: str) -> Iterator[Any]:
    """Outermost JSON objects and arrays anywhere in a text, in order."""
    position, starts = 0, 0
    while starts < _MAX_STARTS and (found := _OPENING.search(text, position)):
        starts += 1
        try:
            value, position = _DECODER.raw_decode(text, found.start())
        # a decoder fails on endless digits with a plain ValueError, on endless brackets with a RecursionError
        except (ValueError, RecursionError):
            position = found.start() + 1
            continue
        yield value


def _whole_interests(text: str) -> Iterator[Any]:
    """Complete `{"interest": ...}` objects of an answer whose JSON as a whole is broken."""
    for found in re.finditer(r'\{\s*"interest"\s*:', text):
        try:
            yield _DECODER.raw_decode(text, found.start())[0]
        except (ValueError, RecursionError):
            continue


def _is_cut_off(text: str) -> bool:
    """Whether a bracket or a string inside brackets is still open at the end, strings read as JSON reads them."""
    depth, inside, escaped = 0, False, False
    for letter in text:
        if inside:
            escaped, inside = (not escaped and letter == "\\"), (escaped or letter != '"')
        elif letter == '"':
            inside = depth > 0
        elif letter in "{[":
            depth += 1
        elif letter in "}]":
            depth = max(depth - 1, 0)
    return depth > 0
