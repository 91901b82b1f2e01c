"""The rule for prompts that are too long, the same in training, decoding and serving: they lose their oldest items.

A prompt and its completion are at most `policy.max_tokens` long together. A prompt that is too long loses whole items, the
oldest first, until it fits; the words around the items stay. Of semantic IDs it holds no more than `items_that_fit` in any
case: training sequences are cut to as many, so no position is decoded that was not trained.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

TITLES = "Titles:\n"
"""How a prompt of titles begins; each title is a line, the oldest first, and the last line is what is asked."""
SPECIAL_TOKENS = 2
"""The most tokens that a tokenizer puts around a text."""
_SID = re.compile(r"<a_\d+>(?:<[b-z]_\d+>)*")
_SIDS = re.compile(rf"(?:{_SID.pattern})+")


class PromptParts(NamedTuple):
    """A prompt's items, the oldest first, and the words before and behind them."""

    before: str
    items: list[str]
    behind: str


class PromptTokens(NamedTuple):
    """Prompts as tokens."""

    rows: list[list[int]]
    num_cut: int
    """Prompts that lost items."""


def items_that_fit(max_tokens: int, num_levels: int) -> int:
    """Return how many semantic IDs a prompt may hold, so that with one more, its completion, it is within `max_tokens`.

    Never less than 1: where not even one fits, reading the prompt is an error.
    """
    return max((max_tokens - SPECIAL_TOKENS) // num_levels - 1, 1)


def split_prompt(prompt: str) -> PromptParts:
    """Find a prompt's items: the lines of a prompt of titles, else its longest row of semantic IDs."""
    if prompt.startswith(TITLES):
        *titles, behind = prompt.removeprefix(TITLES).split("\n")
        return PromptParts(TITLES, [f"{title}\n" for title in titles], behind)
    longest = max(_SIDS.finditer(prompt), key=lambda found: len(found[0]), default=None)
    if longest is None:
        return PromptParts(prompt, [], "")
    return PromptParts(prompt[: longest.start()], _SID.findall(longest[0]), prompt[longest.end() :])


def read_prompts(
    prompts: Sequence[str],
    read: Callable[[list[str]], list[list[int]]],
    max_tokens: int,
    num_levels: int,
    completion_tokens: Sequence[int] | None = None,
) -> PromptTokens:
    """Turn prompts into tokens, without their oldest items where they are too long.

    Args:
        read: the tokenizer.
        completion_tokens: of each prompt; at least a whole semantic ID is reserved behind each.

    Raises:
        ValueError: a prompt is too long even with its newest item alone.
    """
    rows, num_cut, most = read(list(prompts)), 0, items_that_fit(max_tokens, num_levels)
    for row, prompt in enumerate(prompts):
        left = max_tokens - max(num_levels, completion_tokens[row] if completion_tokens else 0)
        if len(rows[row]) > left or prompt.count("<a_") > most:
            rows[row] = _read_newest(prompt, read, left, most)
            num_cut += 1
    return PromptTokens(rows, num_cut)


def _read_newest(prompt: str, read: Callable[[list[str]], list[list[int]]], left: int, most: int) -> list[int]:
    before, items, behind = split_prompt(prompt)

    def tokens(first: int) -> list[int]:
        return read([before + "".join(items[first:]) + behind])[0]

    oldest = 0 if before == TITLES else max(len(items) - most, 0)
    first = bisect_left(range(len(items)), True, lo=oldest, key=lambda first: len(tokens(first)) <= left)
    if first == len(items):
        shortest = len(tokens(max(len(items) - 1, 0)))
        raise ValueError(
            f"policy.max_tokens: a prompt has {shortest} tokens with its newest item alone, beside its completion at most "
            f"{max(left, 0)} fit; raise policy.max_tokens, or lower tasks.max_text_chars"
        )
    return tokens(first)
