"""What a code stands for, in words: the phrases that its items have and other codes' items have not."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
from jaxtyping import Int

TOP_PHRASES = 8


def codeword_texts(codes: Int[np.ndarray, "N L"], phrases: pa.Array, level_sizes: tuple[int, ...]) -> list[list[str]]:
    """Return per level and code its most telling phrases in one text; the empty text where no item has the code.

    A code's phrases are ranked by the number of its items that have them, times log((1 + codes in use) / codes whose items
    have them): tf-idf with codes as documents. Without the second factor all codes of the later levels, which say how items
    differ within a prefix, would read the same.

    Args:
        codes: SIDs; -1 behind the end of a shorter one.
        phrases: a list of N lists of strings, each item's interests or title.
        level_sizes: codes per level.
    """
    texts = phrases.flatten().dictionary_encode()
    phrase_ids, words = texts.indices.to_numpy(zero_copy_only=False).astype(np.int64), texts.dictionary
    items = np.repeat(np.arange(len(codes)), phrases.value_lengths().fill_null(0).to_numpy())
    result = []
    for level, size in enumerate(level_sizes):
        code = codes[items, level].astype(np.int64)
        pairs, counts = np.unique(code[code >= 0] * len(words) + phrase_ids[code >= 0], return_counts=True)
        owner, phrase = pairs // max(len(words), 1), pairs % max(len(words), 1)
        spread = np.bincount(phrase, minlength=len(words))
        weight = counts * np.log((1 + len(np.unique(owner))) / spread[phrase])
        order = np.lexsort((phrase, -weight, owner))
        starts = np.searchsorted(owner[order], np.arange(size + 1))
        best = [order[start : min(start + TOP_PHRASES, end)] for start, end in pairwise(starts)]
        result.append(["; ".join(words.take(pa.array(phrase[rows])).to_pylist()) for rows in best])
    return result
