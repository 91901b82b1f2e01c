"""The phrases of an item: its trusted interests, or pieces of its text as a control.

Both are processed in the same way: encoded, grouped, and turned into vectors, neighbours and features. So the gain of
interests over pieces of text is due to the miner.
"""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from digr.tables import flat_interests

PHRASES = pa.schema([("row", pa.int64()), ("interest", pa.string()), ("weight", pa.float32())])
"""Phrases of items, grouped by item; `row` is the index of the item."""
MAX_PIECES = 5
"""Most pieces of an item's text: its title and the first sentences of its description."""
MIN_WORDS, MAX_CHARS = 3, 200
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+")


def trusted_phrases(interests: pa.Table, labels: pa.Table) -> pa.Table:
    """Return the trusted interests of items, with the miners' confidence as weight.

    Args:
        interests: rows of `interests`.
        labels: the rows of `interest_labels` of the same items.
    """
    found, given = flat_interests(interests), flat_interests(labels)
    weight = pc.fill_null(found["confidence"], 1.0)
    table = pa.table({"row": found["row"], "interest": pc.utf8_lower(found["interest"]), "weight": weight}).cast(PHRASES)
    return table.filter(pc.equal(given["label"], 1))


def text_pieces(items: pa.Table) -> pa.Table:
    """Return the titles and the first sentences of the descriptions of rows of `items`, all of weight 1."""
    row, pieces = [], []
    texts = zip(items["title"].to_pylist(), items["description"].to_pylist(), strict=True)
    for number, (title, description) in enumerate(texts):
        sentences = [sentence.strip() for sentence in _SENTENCE_END.split((description or "")[: 10 * MAX_CHARS])]
        chosen = [title, *(sentence for sentence in sentences if len(sentence.split()) >= MIN_WORDS)][:MAX_PIECES]
        pieces += [piece[:MAX_CHARS].lower() for piece in chosen]
        row += [number] * len(chosen)
    return pa.table({"row": row, "interest": pieces, "weight": np.ones(len(row))}).cast(PHRASES)
