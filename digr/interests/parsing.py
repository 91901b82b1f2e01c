"""Turn any answer of a miner into a status and a clean list of interests.

Language models think aloud, wrap JSON in fences, break it, stop in the middle, refuse, or write prose. None of these raises an
error: a failure is a row with its status. Well-formed JSON is read directly, broken JSON by `json_repair`.
"""

import json
import math
import re
import unicodedata
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import json_repair

from digr.interests.prompts import MAX_PHRASE_CHARS

MAX_INTERESTS = 20
"""Most interests kept of an answer."""
_MAX_LISTS = 4
_MAX_BROKEN_CHARS, _MAX_BROKEN_TOKENS, _MAX_DEPTH = 20_000, 500, 32
"""Limits of the broken JSON that is repaired, because the time of `json_repair` is quadratic in quotes and brackets."""
_MAX_LINE_CHARS, _MAX_WORDS = 400, 10

_PHRASE_KEYS = ("interest", "name", "phrase", "text")
_CONFIDENCE_KEYS = ("confidence", "score", "probability")
_THOUGHT_TAG = re.compile(r"<(?P<end>/?)(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_LIST_START = re.compile(
    r"interests\W{0,4}:\s{0,40}(?P<keyed>\[)"
    rf"|(?P<entries>\[)\s{{0,40}}\{{\s{{0,40}}\W{{0,2}}(?:{'|'.join(_PHRASE_KEYS)})\W{{0,2}}:"
    r"|\A\s*(?:```\w*\s*)?(?P<phrases>\[)\s*[\"']",
    re.IGNORECASE,
)
_OPENING = re.compile(r"[{\[]")
_TOKEN = re.compile(r"\\.|[\"'“”`{}\[\](]", re.DOTALL)
_REFUSAL = re.compile(
    r"\b(i['’]?m sorry|i am sorry|i can(?:no|['’])t|i cannot|i['’]?m (?:not able|unable)|i am (?:not able|unable)|"
    r"i won['’]?t|as an ai\b|unable to (?:assist|help|comply)|against my guidelines)",
    re.IGNORECASE,
)
_NOT_IN_A_PHRASE = re.compile(r"[^\w\s'&/+-]|_")
_LIST_LINE = re.compile(r"\s{0,12}(?:\(?\d{1,2}[.):]|[-*•–+])\s+(\S.*)")
_LABEL = re.compile(r"\A\W{0,2}(?:interest|phrase)\s?\d{0,2}\W{0,2}:\W{0,3}", re.IGNORECASE)
_BEHIND_PHRASE = re.compile(r":|\(|\s[-–—]\s")
_STATED_CONFIDENCE = re.compile(
    r"\W{0,3}(?:confidence|score)?\W{0,4}(\d{1,3}(?:\.\d+)?\s?(?:%|/\s?10{1,2}\b)?)(?!\w)", re.IGNORECASE
)
_NUMBER = re.compile(r"([-+]?[\d.]+(?:e[-+]?\d+)?)\s*(%|/\s*10{1,2})?", re.IGNORECASE)
_WORDS = {"high": 0.9, "medium": 0.6, "low": 0.3}
# models write line breaks and other control characters into strings, which strict JSON forbids
_DECODER = json.JSONDecoder(strict=False)


class Parsed(NamedTuple):
    """Status of an answer, its interests strongest first, and the reason if it is not "ok"."""

    status: str
    interests: list[tuple[str, float | None]]
    reason: str | None = None


class _Listed(NamedTuple):
    """Entries of one list of interests; `whole` is false if the text stops before the list's end."""

    entries: list[Any]
    whole: bool


def normalise_phrase(phrase: str) -> str:
    """Return a phrase in its normal form: lower case, single spaces, no punctuation, at most 80 characters.

    >>> normalise_phrase("  Weekend trout-fishing!! ")
    'weekend trout-fishing'
    """
    text = unicodedata.normalize("NFKC", phrase.encode("utf-8", "ignore").decode()).lower()
    text = " ".join(_NOT_IN_A_PHRASE.sub(" ", text).split()).strip(" -'&/+")
    if len(text) > MAX_PHRASE_CHARS:
        text = text[: MAX_PHRASE_CHARS + 1].rpartition(" ")[0] or text[:MAX_PHRASE_CHARS]
    return text.strip(" -'&/+")


def parse_response(text: str | None) -> Parsed:
    r"""Parse one answer; never raises, and takes bounded time.

    Statuses: "ok" with at least one interest; "truncated" if the JSON, or the reasoning before it, stops in the middle (its
    complete interests are kept); "refused"; "empty" if there is no text or a well-formed answer lists no interest;
    "unparsable" otherwise.

    Text inside `<think>…</think>` is ignored. Of several lists of interests the last complete one counts, because a model
    that corrects itself, or repeats the form from the prompt, gives its answer last.

    >>> parse_response('<think>{"interests": [{"interest": "cars"}]}</think>```json\n[{"name": "Ice Fishing"},]\n```')
    Parsed(status='ok', interests=[('ice fishing', None)], reason=None)
    """
    answer, thinking = _behind_reasoning(text or "")
    cut: _Listed | None = None
    empty = False
    for listed in _lists(answer):
        interests = clean_interests(listed.entries)
        if listed.whole and interests:
            return Parsed("ok", interests)
        empty = empty or listed.whole
        cut = cut or (None if listed.whole else listed)
    if cut:
        interests = clean_interests(cut.entries)
        return Parsed("truncated", interests, f"the JSON stops after {len(interests)} complete interests")
    if empty:
        return Parsed("empty", [], "the answer lists no interest")
    if thinking:
        return Parsed("truncated", [], "the text stops inside the reasoning")
    if not answer.strip():
        return Parsed("empty", [], "no text" if answer == (text or "") else "no text after the reasoning")
    if _stops_inside_json(answer):
        return Parsed("truncated", [], "the JSON stops after 0 complete interests")
    if _REFUSAL.search(answer[:400]):
        return Parsed("refused", [], "the model declined")
    interests = clean_interests(_listed_in_prose(answer))
    return Parsed("ok", interests) if interests else Parsed("unparsable", [], "no list of interests in JSON or in lines")


def clean_interests(entries: Iterable[Any]) -> list[tuple[str, float | None]]:
    """Return normalised, unique (interest, confidence), strongest first; confidences are in [0, 1] or None.

    An entry is a phrase, or an object with the phrase as interest, name, phrase or text. "95%" and "8/10" state their scale.
    All other numbers of an answer share one scale: out of 1 if any lies strictly between 0 and 1; else out of 100 if the
    largest is above 10, out of 10 if it is at least 2, and out of 1 otherwise. Numbers too large for their scale become 1.
    "high", "medium" and "low" are 0.9, 0.6 and 0.3.

    >>> clean_interests([{"name": "Ice fishing", "confidence": 90}, {"name": "Camping", "confidence": 45}])
    [('ice fishing', 0.9), ('camping', 0.45)]
    >>> clean_interests([{"interest": "ice fishing", "confidence": 8}, {"interest": "camping", "confidence": 3}])
    [('ice fishing', 0.8), ('camping', 0.3)]
    >>> clean_interests([{"interest": "ice fishing", "confidence": "95%"}, {"interest": "camping", "confidence": "low"}])
    [('ice fishing', 0.95), ('camping', 0.3)]
    >>> clean_interests([{"interest": "ice fishing", "confidence": 1.5}, {"interest": "camping", "confidence": 0.4}])
    [('ice fishing', 1.0), ('camping', 0.4)]
    """
    read = [(normalise_phrase(phrase), _number(confidence)) for phrase, confidence in map(_entry, entries) if phrase]
    bare = [number for _, (number, scale) in read if number is not None and not scale]
    highest = max(bare, default=0.0)
    common = 1.0 if highest < 2 or any(0 < number < 1 for number in bare) else 10.0 if highest <= 10 else 100.0
    best: dict[str, float | None] = {}
    for phrase, (number, scale) in read:
        if not any(letter.isalpha() for letter in phrase):
            continue
        value = None if number is None else min(max(number / (scale or common), 0.0), 1.0)
        if phrase not in best or (value is not None and value > (best[phrase] or 0.0)):
            best[phrase] = value
    # the sort is stable: answers without confidences keep the model's order
    return sorted(best.items(), key=lambda pair: -(pair[1] or 0.0))[:MAX_INTERESTS]


def _entry(entry: Any) -> tuple[str | None, Any]:
    """Return the phrase and the confidence of one entry of a list, unchanged."""
    if isinstance(entry, str):
        phrase, stated = _in_words(entry)
        return (phrase, stated) if stated else (entry, None)
    if not isinstance(entry, dict):
        return None, None
    fields = {str(name).strip().lower(): value for name, value in entry.items()}
    phrases = [fields[name] for name in _PHRASE_KEYS if isinstance(fields.get(name), str)]
    return (phrases or [None])[0], next((fields[name] for name in _CONFIDENCE_KEYS if name in fields), None)


def _number(value: Any) -> tuple[float | None, float | None]:
    """Return a confidence as a number, and its scale if it states one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None, None
    scale = None
    if isinstance(value, str):
        value = value.strip().lower()[:40]
        if value in _WORDS:
            return _WORDS[value], 1.0
        found = _NUMBER.fullmatch(value)
        if not found:
            return None, None
        value, unit = found.groups()
        scale = None if not unit else 100.0 if unit == "%" else float(unit.strip("/ "))
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None, None
    return (number if math.isfinite(number) else None), scale


def _in_words(line: str) -> tuple[str, str | None]:
    """Return the phrase of a line up to a colon, a dash or a bracket, and the confidence right after it, if any."""
    line = re.sub(r"[*_\"“”]", "", line[:_MAX_LINE_CHARS])
    found = _BEHIND_PHRASE.search(line)
    place = found.start() if found else len(line)
    stated = _STATED_CONFIDENCE.match(line, place)
    return line[:place], stated[1] if stated else None


def _behind_reasoning(text: str) -> tuple[str, bool]:
    """Return the answer without its reasoning, and whether the reasoning lacks its end; the prompt may hold the opening tag."""
    try:
        _DECODER.decode(text)
        return text, False  # a tag inside a string of the answer does not count
    except (ValueError, RecursionError):
        pass
    parts: list[str] = []
    start: int | None = 0
    for tag in _THOUGHT_TAG.finditer(text):
        if tag["end"]:
            if start is not None:
                parts.clear()
            start = tag.end()
        elif start is not None:
            parts.append(text[start : tag.start()])
            start = None
    return "".join(parts) + ("" if start is None else text[start:]), start is None


def _lists(text: str) -> Iterable[_Listed]:
    """Return the lists of interests in a text, the last one first."""
    starts = deque(_LIST_START.finditer(text), _MAX_LISTS)
    end = len(text)
    for found in reversed(starts):
        yield _read_list(text, found.start(found.lastgroup or 0), end, keyed=found.lastgroup == "keyed")
        end = found.start()


def _read_list(text: str, start: int, end: int, keyed: bool) -> _Listed:
    """Read the list that opens at `start`; a list with a key is complete only if the object around it is closed too."""
    keyed = keyed and "{" in text[:start]
    try:
        entries, stop = _DECODER.raw_decode(text, start)
        return _Listed(entries, not keyed or "}" in text[stop:end])
    # too many digits raise a ValueError, too many nested brackets a RecursionError
    except (ValueError, RecursionError):
        pass
    # a surplus quote swaps inside and outside of strings, and brackets in strings do not count; if both readings agree,
    # they are right
    readings = [_open_brackets(text, start, end, strings) for strings in (True, False)]
    closed = [stop for opened, stop in readings if not opened]
    stop = min(max(stop for _, stop in readings), start + _MAX_BROKEN_CHARS)
    cut = not closed or stop == start + _MAX_BROKEN_CHARS
    if cut:  # json_repair would close an open entry, and a phrase cut in the middle would look complete
        stop = min([stop, *(place for opened, _ in readings if (place := _open_entry(text, opened)) is not None)])
    try:
        value = json_repair.loads(f'{{"interests": {text[start:stop]}', skip_json_loads=True)
    except (ValueError, RecursionError):
        value = None
    value = value[0] if isinstance(value, list) and value else value
    entries = value.get("interests") if isinstance(value, dict) else None
    entries = entries if isinstance(entries, list) else []
    if cut and entries and isinstance(entries[-1], str) and text[start:stop].rstrip()[-1] not in "\"'”,":
        entries = entries[:-1]
    return _Listed(entries, not cut and (not keyed or "}" in text[min(closed) : end]))


def _open_brackets(text: str, start: int, end: int, strings: bool) -> tuple[list[int], int]:
    """Find the end of the value that begins at `start`; return the places of brackets still open there, and the end.

    Args:
        strings: ignore brackets between double quotes, and count an open quote like a bracket.
    """
    opened: list[int] = []
    for count, token in enumerate(_TOKEN.finditer(text, start, end)):
        letter, inside = token[0], bool(opened) and text[opened[-1]] == '"'
        if count >= _MAX_BROKEN_TOKENS or len(opened) > _MAX_DEPTH:
            return opened, token.start()
        if inside and letter == '"':
            opened.pop()
        elif not inside and (letter in "{[" or (letter == '"' and strings)):
            opened.append(token.start())
        elif not inside and letter in "}]":
            matching = [index for index, place in enumerate(opened) if text[place] == ("{" if letter == "}" else "[")]
            opened = opened[: matching[-1]] if matching else opened
            if not opened:
                return [], token.end()
    return opened, end


def _open_entry(text: str, opened: list[int]) -> int | None:
    """Return the start of the entry in which a cut list stops: the first bracket or quote still open in the innermost list."""
    lists = [index for index, place in enumerate(opened) if text[place] == "["]
    return opened[lists[-1] + 1] if lists and lists[-1] + 1 < len(opened) else None


def _stops_inside_json(text: str) -> bool:
    position = 0
    while found := _OPENING.search(text, position):
        opened, position = _open_brackets(text, found.start(), len(text), strings=True)
        if opened:
            return True
    return False


def _listed_in_prose(text: str) -> list[dict[str, Any]]:
    """Return the entries of the last numbered or bulleted list in a text, without sentences, if it has at least two."""
    entries: list[dict[str, Any]] = []
    ended = True
    for line in text.splitlines():
        found = _LIST_LINE.match(line[:_MAX_LINE_CHARS])
        if found:
            if ended:
                entries = []
            ended = False
            phrase, stated = _in_words(_LABEL.sub("", found[1]))
            if len(phrase.split()) <= _MAX_WORDS:
                entries.append({"interest": phrase, "confidence": stated})
        elif line.strip() and not line[0].isspace():
            ended = True
    return entries if len(entries) > 1 else []
