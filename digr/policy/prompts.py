"""The rule for prompts that are too long, the same in training, decoding and serving: they lose their oldest items.

A prompt and its completion together have at most `policy.max_tokens`. A longer prompt loses whole items, the oldest first,
until it fits; the words around the items stay. A prompt of semantic IDs never has more than `items_that_fit` items: training
sequences have the same limit, so decoding uses only trained positions.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

TITLES = "Titles:\n"
"""First line of a prompt of titles; then each title is a line, the oldest first, and the last line is the question."""
SPECIAL_TOKENS = 2
"""Most special tokens that a tokenizer adds to a text."""
_SID = re.compile(r"<a_\d+>(?:<[b-z]_\d+>)*")
_SIDS = re.compile(rf"(?:{_SID.pattern})+")


class PromptParts(NamedTuple):
    """A prompt's items, the oldest first, and the text before and after them."""

    before: str
    items: list[str]
    behind: str


class PromptTokens(NamedTuple):
    """Prompts as tokens."""

    rows: list[list[int]]
    num_cut: int
    """Prompts that lost items."""


def items_that_fit(max_tokens: int, num_levels: int) -> int:
    """Return how many semantic IDs a prompt may hold, so that it and one more, its completion, fit into `max_tokens`.

    At least 1: if not even one fits, reading the prompt raises an error.
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
    """Turn prompts into tokens; prompts that are too long lose their oldest items.

    Args:
        read: the tokenizer.
        completion_tokens: tokens of each prompt's completion; at least a semantic ID is reserved for each.

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
            f"policy.max_tokens: a prompt has {shortest} tokens with its newest item alone, but its completion leaves room for "
            f"{max(left, 0)}; raise policy.max_tokens, or lower tasks.max_text_chars"
        )
    return tokens(first)
