"""The inner loops of decoding on a CPU, compiled by Numba at their first use on a machine.

PyTorch needs tens of small operations for each of them; with few beams their overhead of 3 to 7 us exceeds the computation.
Its attention of branches also computes masked scores. All loops run in the calling thread, except large matrix products.
Numba caches compiled code beside this file, or in the user's cache folder if this one is not writable.
"""

import math

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64
from numba import njit

_PLACES = 0xFFFFFFFF
_WORD = 64
_ANY_ORDER = {"reassoc", "contract", "nsz"}
"""Sums may be reordered, so that loops use vector instructions; infinities and NaN keep their meaning."""
_LEAST = np.float32(-87)
"""Smaller exponents are replaced by this one; e to its power is 2e-38."""


@njit(cache=True, nogil=True)
def choose(  # noqa: PLR0917 (a compiled function takes its arrays one by one)
    logits: Float32[np.ndarray, "B Q K"],
    node: Int64[np.ndarray, "B P"],
    score: Float32[np.ndarray, "B P"],
    is_open: Bool[np.ndarray, "B P"],
    first_child: Int64[np.ndarray, " nodes"],
    num_children: Int64[np.ndarray, " nodes"],
    node_code: Int32[np.ndarray, " nodes"],
    node_open: Bool[np.ndarray, " nodes"],
    item_start: Int64[np.ndarray, " nodes"],
    item_end: Int64[np.ndarray, " nodes"],
    later_start: Int64[np.ndarray, " n"],
    later_end: Int64[np.ndarray, " n"],
    words: Int64[np.ndarray, "B W"],
    before: Int32[np.ndarray, "B W1"],
    next_node: Int64[np.ndarray, "B M"],
    next_score: Float32[np.ndarray, "B M"],
    next_open: Bool[np.ndarray, "B M"],
    code: Int64[np.ndarray, "B M"],
    branch: Int64[np.ndarray, "B M"],
) -> tuple[int, int]:
    """Choose the beams of a level as in `choosing.next_beams`; `next_node` and all later arguments are outputs.

    Args:
        logits: logits of all codes after the Q open beams of each request, in order; later rows are not read.
        words: with `before`, see `ItemFilter`; without columns all items are allowed.

    Returns:
        The largest number of beams, and of open beams, of a request.
    """
    num_rows, num_open, num_codes = logits.shape
    width, most, most_open = next_node.shape[1], 0, 0
    found, first_of = np.empty(4 * width, np.int64), np.empty(num_open, np.int64)
    grown, powers, scratch = np.empty(num_codes, np.float32), np.empty(num_codes, np.float32), np.empty(num_codes, np.int32)
    work = found, first_of, grown, powers, scratch
    nodes = first_child, num_children, node_code, item_start, item_end, later_start, later_end
    for row in range(num_rows):
        beams, allowed = (logits[row], node[row], score[row], is_open[row]), (words[row], before[row])
        state = _grow(beams, nodes, allowed, work, width)
        count = _add_settled(beams, num_open * num_codes, found, state, width)
        best, still_open = np.sort(found[:count])[:width], 0
        for rank in range(width):
            next_node[row, rank], next_score[row, rank], next_open[row, rank] = -1, -np.inf, False
            code[row, rank], branch[row, rank] = 0, 0
        for rank in range(len(best)):
            at, child = divmod(best[rank] & _PLACES, num_codes)
            if at < num_open:
                next_node[row, rank], next_open[row, rank] = first_of[at] + child, node_open[first_of[at] + child]
            else:
                next_node[row, rank] = node[row, (best[rank] & _PLACES) - num_open * num_codes]
            next_score[row, rank] = _score(best[rank])
            if next_open[row, rank]:
                code[row, still_open], branch[row, still_open] = node_code[next_node[row, rank]], at
                still_open += 1
        most, most_open = max(most, len(best)), max(most_open, still_open)
    return most, most_open


@njit(cache=True, nogil=True)
def _grow(
    beams: tuple[np.ndarray, ...],
    nodes: tuple[np.ndarray, ...],
    allowed: tuple[np.ndarray, ...],
    work: tuple[np.ndarray, ...],
    width: int,
) -> tuple[int, np.float32]:
    """Extend one request's open beams; return the number of beams found and the score that others must exceed."""
    logits, node, score, is_open = beams
    first_child, num_children, node_code = nodes[:3]
    (words, before), (found, first_of, grown, powers, scratch), num_codes = allowed, work, logits.shape[1]
    count, worst, at = 0, np.float32(-np.inf), 0
    for beam in range(len(node)):
        if not is_open[beam]:
            continue
        first, children = first_child[node[beam]], num_children[node[beam]]
        for child in range(children):
            grown[child] = logits[at, child if children == num_codes else node_code[first + child]]
            powers[child] = grown[child]
        top, total = _exponentials(powers[:children], scratch)
        base = score[beam] - np.float32(math.log(total))
        for child in range(children):
            value = base + (grown[child] - top)
            if value > worst and (not len(words) or _allows(nodes[3:], words, before, first + child)):
                count, worst = _add(found, count, worst, _key(value, at * num_codes + child), width)
        first_of[at] = first
        at += 1
    return count, worst


@njit(cache=True, nogil=True)
def _add_settled(
    beams: tuple[np.ndarray, ...], first_place: int, found: Int64[np.ndarray, " F"], state: tuple[int, np.float32], width: int
) -> int:
    """Add the settled beams after those that `_grow` found; return the number of beams found."""
    (_, node, score, is_open), (count, worst) = beams, state
    for beam in range(len(node)):
        if not is_open[beam] and score[beam] > worst:
            count, worst = _add(found, count, worst, _key(score[beam], first_place + beam), width)
    return count


@njit(cache=True, nogil=True)
def _add(found: Int64[np.ndarray, " F"], count: int, worst: np.float32, key: int, width: int) -> tuple[int, np.float32]:
    """Add a key, keeping only the best `width`; return the number of keys and the score that others must exceed."""
    found[count] = key
    if count + 1 < len(found):
        return count + 1, worst
    found.sort()
    return width, _score(found[width - 1])


@njit(cache=True, nogil=True, fastmath=_ANY_ORDER)
def attend_prompts(
    mixed: Float32[np.ndarray, "B T 3 H C"], prompts: Float32[np.ndarray, "2 B H T C"], seen: Float32[np.ndarray, "B T H C"]
) -> None:
    """Compute causal attention of the prompts' tokens.

    Args:
        mixed: query, key and value of each token.
        prompts: output: keys and values.
        seen: output of the attention.
    """
    num_rows, width, _, num_heads, dim = mixed.shape
    query, sums = np.empty((width, dim), np.float32), np.empty((width, dim), np.float32)
    weight, scratch = np.empty((width, width), np.float32), np.empty(width, np.int32)
    scale, one = np.float32(1 / math.sqrt(dim)), np.float32(1)
    for row in range(num_rows):
        for head in range(num_heads):
            for token in range(width):
                _scale(mixed[row, token, 0, head], scale, query[token])
                _scale(mixed[row, token, 1, head], one, prompts[0, row, head, token])
                _scale(mixed[row, token, 2, head], one, prompts[1, row, head, token])
            np.dot(query, prompts[0, row, head].T, weight)
            for token in range(width):
                _softmax(weight[token, : token + 1], scratch)
                weight[token, token + 1 :] = 0
            np.dot(weight, prompts[1, row, head], sums)
            for token in range(width):
                _scale(sums[token], one, seen[row, token, head])


@njit(cache=True, nogil=True, fastmath=_ANY_ORDER)
def attend_branches(
    mixed: Float32[np.ndarray, "B Q 3 H C"],
    prompts: Float32[np.ndarray, "2 B H T C"],
    length: Int64[np.ndarray, " B"],
    branches: Float32[np.ndarray, "B Q E 2 H C"],
    seen: Float32[np.ndarray, "B Q H C"],
) -> None:
    """Compute attention of each branch's newest token to its prompt and to the E tokens of its branch, itself included.

    Args:
        mixed: query, key and value of each token; only the queries are read.
        prompts: keys and values of the prompts.
        length: tokens of each prompt; later ones are padding.
        branches: keys and values of the branches.
        seen: output of the attention.
    """
    num_rows, width, depth, _, num_heads, dim = branches.shape
    padded, scale, one = prompts.shape[3], np.float32(1 / math.sqrt(dim)), np.float32(1)
    query, sums, weight = (
        np.empty((width, dim), np.float32),
        np.empty((width, dim), np.float32),
        np.empty((width, padded), np.float32),
    )
    shares, scratch = np.empty((width, padded + depth), np.float32), np.empty(padded + depth, np.int32)
    for row in range(num_rows):
        prompt = length[row]
        for head in range(num_heads):
            for beam in range(width):
                _scale(mixed[row, beam, 0, head], scale, query[beam])
            np.dot(query, prompts[0, row, head].T, weight)
            for beam in range(width):
                _scale(weight[beam, :prompt], one, shares[beam, :prompt])
                for step in range(depth):
                    shares[beam, prompt + step] = _dot(query[beam], branches[row, beam, step, 0, head])
                _softmax(shares[beam, : prompt + depth], scratch)
                for place in range(padded):
                    weight[beam, place] = shares[beam, place] if place < prompt else np.float32(0)
            np.dot(weight, prompts[1, row, head], sums)
            for beam in range(width):
                _scale(sums[beam], one, seen[row, beam, head])
                for step in range(depth):
                    share = shares[beam, prompt + step]
                    for c in range(dim):
                        seen[row, beam, head, c] += share * branches[row, beam, step, 1, head, c]


@njit(cache=True, nogil=True, fastmath=_ANY_ORDER, inline="always")
def _scale(values: Float32[np.ndarray, " V"], factor: np.float32, scaled: Float32[np.ndarray, " V"]) -> None:
    for i in range(len(values)):
        scaled[i] = values[i] * factor


@njit(cache=True, nogil=True, fastmath=_ANY_ORDER, inline="always")
def _softmax(values: Float32[np.ndarray, " V"], scratch: Int32[np.ndarray, " S"]) -> None:
    """Replace values by their softmax. S >= V."""
    _, total = _exponentials(values, scratch)
    for i in range(len(values)):
        values[i] /= total


@njit(cache=True, nogil=True, fastmath=_ANY_ORDER)
def _dot(one: Float32[np.ndarray, " C"], two: Float32[np.ndarray, " C"]) -> np.float32:
    product = np.float32(0)
    for c in range(len(one)):
        product += one[c] * two[c]
    return product


@njit(cache=True, nogil=True, fastmath={"contract"})
def _exponentials(values: Float32[np.ndarray, " V"], scratch: Int32[np.ndarray, " S"]) -> tuple[np.float32, np.float32]:
    """Replace each value by exp(value - largest); return the largest value and the sum of exponentials. S >= V.

    e^x = 2^k e^r with k = round(x / ln 2): e^r by the polynomial of Cephes' `expf`, with relative error 1e-7; 2^k by its
    bits. Adding 1.5 * 2^23 puts the rounded value into a number's lowest bits; the terms of this sum must not be reordered.
    """
    count, power, largest = len(values), scratch.view(np.float32), values[0]
    for i in range(count):
        largest = values[i] if values[i] > largest else largest
    for i in range(count):
        values[i] -= largest
        values[i] = values[i] if values[i] > _LEAST else _LEAST
        power[i] = values[i] * np.float32(1.4426950408889634) + np.float32(12582912)
    for i in range(count):
        k = power[i] - np.float32(12582912)
        r = values[i] - k * np.float32(0.693359375) - k * np.float32(-2.12194440e-4)
        tail = ((np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)) * r + np.float32(8.3334519073e-3)) * r
        tail = ((tail + np.float32(4.1665795894e-2)) * r + np.float32(1.6666665459e-1)) * r + np.float32(5.0000001201e-1)
        values[i] = tail * r * r + r + np.float32(1)
    for i in range(count):
        scratch[i] = (scratch[i] + np.int32(127)) << np.int32(23)
    for i in range(count):
        values[i] *= power[i]
    return largest, _sum(values)


@njit(cache=True, nogil=True, fastmath=_ANY_ORDER)
def _sum(values: Float32[np.ndarray, " V"]) -> np.float32:
    total = np.float32(0)
    for i in range(len(values)):
        total += values[i]
    return total


@njit(cache=True, nogil=True)
def _key(score: np.float32, place: int) -> np.int64:
    """Return an integer that is smaller for better scores, then for earlier places; scores are at most 0."""
    return (np.int64(np.float32(abs(score)).view(np.int32)) << 32) | place


@njit(cache=True, nogil=True)
def _score(key: int) -> np.float32:
    return -np.int32(key >> 32).view(np.float32)


@njit(cache=True, nogil=True)
def _allows(ranges: tuple[np.ndarray, ...], words: Int64[np.ndarray, " W"], before: Int32[np.ndarray, " W1"], node: int) -> bool:
    """Whether an item below a node is allowed."""
    item_start, item_end, later_start, later_end = ranges
    if _any_allowed(words, before, item_start[node], item_end[node]):
        return True
    return (
        len(later_end) > 0
        and later_end[node] > later_start[node]
        and _any_allowed(words, before, later_start[node], later_end[node])
    )


@njit(cache=True, nogil=True)
def _any_allowed(words: Int64[np.ndarray, " W"], before: Int32[np.ndarray, " W1"], start: int, end: int) -> bool:
    """Whether an item at places [start, end) is allowed, end > start."""
    first, last = start // _WORD, (end - 1) // _WORD
    head, tail = np.int64(-1) << (start % _WORD), np.int64(-1) ^ (np.int64(-2) << ((end - 1) % _WORD))
    if first == last:
        return words[first] & head & tail != 0
    return words[first] & head != 0 or words[last] & tail != 0 or before[last] > before[first + 1]
