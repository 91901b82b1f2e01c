"""The line of text that describes an item in a user's history, and the text of a history made of these lines."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from digr import partitions
from digr.artifacts import Store
from digr.data.ids import IdIndex, build_id_index
from digr.tables import flat_interests

SHOWN_INTERESTS = 2
"""Number of an item's strongest interests that its line shows in brackets after the title."""
BATCH_ROWS = 16_384


class ItemLines(NamedTuple):
    """One line of text for each of N items.

    Memory: the lines, each of at most `max_chars`, and the ids, twice. Titles of 80 characters with interests need about 200
    bytes per item, so 0.2 GB for a million items. All data are plain arrays, which workers of a node can share.
    """

    ids: IdIndex
    lines: pa.Array

    def of(self, item_ids: pa.Array, where: str) -> pa.Array:
        """Return the lines of items.

        Raises:
            ValueError: an item has no line.
        """
        return self.lines.take(pa.array(self.ids.find_all(item_ids, where)))


def read_item_lines(store: Store, max_chars: int, with_interests: bool) -> ItemLines:
    """Read the titles of all items of a run, part by part, each followed by its strongest interests if wanted.

    Args:
        max_chars: characters kept of a line.
        with_interests: also read the items' rows of `interests`; that table may still lack its manifest.
    """
    ids, lines = [], []
    for part in partitions.parts_of(store, "item"):
        for item_ids, texts in _lines_of_part(store, part, with_interests):
            ids.append(item_ids)
            lines.append(pc.utf8_slice_codeunits(texts, 0, max_chars))
    return ItemLines(build_id_index(pa.chunked_array(ids, pa.string())), pa.chunked_array(lines, pa.string()).combine_chunks())


def _lines_of_part(store: Store, part: partitions.Part, with_interests: bool) -> Iterator[tuple[pa.Array, pa.Array]]:
    if not with_interests:
        for items in partitions.iter_part(store, "items", part, BATCH_ROWS, ["item_id", "title"]):
            yield items["item_id"].combine_chunks(), pc.utf8_trim_whitespace(items["title"].combine_chunks())
        return
    for items, interests in partitions.iter_aligned(store, ("items", "interests"), part, BATCH_ROWS):
        titles = pc.utf8_trim_whitespace(items["title"].combine_chunks())
        flat = flat_interests(interests)
        shown = flat.filter(pc.less(flat["rank"], SHOWN_INTERESTS))
        ends = np.bincount(np.asarray(shown["row"]), minlength=len(items)).cumsum()
        lists = pa.ListArray.from_arrays(pa.array(np.r_[0, ends].astype(np.int32)), shown["interest"].combine_chunks())
        named = pc.binary_join_element_wise(titles, " (", pc.binary_join(lists, ", "), ")", "")
        yield items["item_id"].combine_chunks(), pc.if_else(pc.equal(lists.value_lengths(), 0), titles, named)


def history_texts(
    histories: pa.Table, items: ItemLines, max_chars: int, newest_first: bool = False
) -> tuple[pa.Array, list[str]]:
    """Return the users that have a text, in order, and their texts: a line for each training item but the last.

    The items are the history of the user's last training row. Its target is left out, like held-out rows, because the policy
    learns to predict this target from interests mined from this text, see `prompts.interests_known`. If the text would be
    too long, the oldest items are dropped. A user with an empty history has no text.

    Args:
        histories: rows of the `histories` table with user_id, split and history, each user's in time order; rows of other
            splits are ignored.
        max_chars: most characters of a text.
        newest_first: whether the newest item's line comes first, instead of the oldest's.

    Raises:
        ValueError: an item of a history is not among `items`.
    """
    train = histories.filter(pc.equal(histories["split"], "train"))
    coded = train["user_id"].combine_chunks().dictionary_encode()
    last = np.zeros(len(coded.dictionary), np.int64)
    last[np.asarray(coded.indices)] = np.arange(len(train))  # the last of equal places stays
    rows = train.take(pa.array(last))
    rows = rows.filter(pc.greater(pc.list_value_length(rows["history"]), 0))
    history = rows["history"].combine_chunks()
    lines = items.of(history.flatten(), "histories").to_pylist()
    ends = np.asarray(history.value_lengths(), np.int64).cumsum().tolist()
    spans = itertools.pairwise([0, *ends])
    return rows["user_id"].combine_chunks(), [_text(lines[start:end], max_chars, newest_first) for start, end in spans]


def _text(lines: list[str], max_chars: int, newest_first: bool) -> str:
    """Join the newest lines that fit; the newest is always kept."""
    kept = 1
    size = len(lines[-1])
    while kept < len(lines) and size + len(lines[-kept - 1]) + 1 <= max_chars:
        kept += 1
        size += len(lines[-kept]) + 1
    text = "\n".join(lines[-kept:])[:max_chars]
    return "\n".join(reversed(text.split("\n"))) if newest_first else text
