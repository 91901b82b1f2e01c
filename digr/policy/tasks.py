"""Text tasks for a pretrained backbone: titles and interests of items, and the next item of a history, in words.

LC-Rec (arXiv 2311.09049) and MiniOneRec (arXiv 2510.24431) mix such tasks into supervised fine-tuning, so that SID tokens
share meaning with the words that the language model knows. A text completion ends with a line break.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from digr.config.policy import TasksConfig
from digr.policy.examples import Sids, item_places
from digr.policy.prompts import TITLES
from digr.policy.vocabulary import USER_INTERESTS, history_prompt
from digr.tables import table_spec

INTEREST_SEPARATOR = "; "
CODE_PHRASES = 8
"""Most phrases of a code's text."""
_SID_LIKE = r"<[a-z]_\d+>"


class ItemTexts(NamedTuple):
    """Titles and trusted interests of all items with a SID, in the order of `Sids.item_index.ids`; null if an item has none."""

    titles: pa.Array
    interests: pa.Array
    """An item's interests joined by "; ", strongest first."""


def plain_text(texts: pa.Array, max_chars: int) -> pa.Array:
    """Clean and shorten texts: SID tokens are removed, white space becomes one space, the empty text becomes null."""
    texts = pc.replace_substring_regex(texts, _SID_LIKE, " ")
    texts = pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, r"\s+", " "))
    texts = pc.utf8_trim_whitespace(pc.utf8_slice_codeunits(texts, 0, max_chars))
    return pc.if_else(pc.equal(pc.utf8_length(texts), 0), None, texts)


def joined_interests(labels: pa.Table, owner: str, owner_ids: pa.Array, max_chars: int, most: int | None = None) -> pa.Array:
    """Return the trusted interests of some items or users, one text each, strongest first; null if there is none.

    Args:
        labels: rows of `interest_labels` as `flat_interests` makes them; other owners' and untrusted ones are ignored.
        owner: "item" or "user".
        most: most interests of a text, None for all.
    """
    chosen = labels.filter(pc.and_(pc.equal(labels["owner"], owner), pc.equal(labels["label"], 1)))
    chosen = chosen.sort_by([("owner_id", "ascending"), ("probability", "descending"), ("rank", "ascending")])
    lists = chosen.group_by("owner_id", use_threads=False).aggregate([("interest", "list")])
    phrases = lists["interest_list"].combine_chunks()
    phrases = phrases if most is None else pc.list_slice(phrases, 0, most)
    joined = plain_text(pc.binary_join(phrases, INTEREST_SEPARATOR), max_chars)
    return joined.take(pc.index_in(owner_ids, value_set=lists["owner_id"].combine_chunks()))


def codeword_texts(codes: Int[np.ndarray, "N L"], phrases: pa.Array, level_sizes: tuple[int, ...]) -> list[list[str]]:
    """Return per level and code its most characteristic phrases in one text; empty if no item has the code.

    Phrases are ranked by tf-idf with codes as documents: the number of the code's items that have the phrase, times
    log((1 + codes in use) / codes whose items have it). Without the second factor all codes of the later levels, which tell
    items with the same prefix apart, would have the same text.

    Args:
        codes: SIDs; -1 after the end of a shorter one.
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
        best = [order[start : min(start + CODE_PHRASES, end)] for start, end in pairwise(starts)]
        result.append([INTEREST_SEPARATOR.join(words.take(pa.array(phrase[rows])).to_pylist()) for rows in best])
    return result


def item_task_examples(item_ids: pa.Array, sids: Sids, texts: ItemTexts, tasks: TasksConfig) -> pa.Table:
    """Make the `policy_examples` rows between items' SIDs and their texts; items without a text have no row."""
    places = pa.array(item_places(item_ids, sids))
    own = pa.array(sids.texts, pa.string()).take(places)
    titles, interests = texts.titles.take(places), texts.interests.take(places)
    parts = {
        "title_to_sid": (_prompt("Title: ", titles, "\nItem: "), own),
        "sid_to_title": (_prompt("Item: ", own, "\nTitle:"), _line(titles)),
        "interest_to_sid": (_prompt("Interests: ", interests, "\nItem: "), own),
        "sid_to_interest": (_prompt("Item: ", own, "\nInterests:"), _line(interests)),
    }
    none = pa.nulls(len(item_ids), pa.string())
    return _rows(tasks, parts, example_ids=item_ids, user_ids=none, targets=item_ids)


def history_task_examples(
    rows: pa.Table, sids: Sids, texts: ItemTexts, interests: pa.Array, tasks: TasksConfig, *, max_history: int, shown: pa.Array
) -> pa.Table:
    """Make the `policy_examples` rows between histories or users and texts.

    Args:
        rows: train rows of `histories` to learn from, usually each user's last.
        interests: the trusted interests of each row's user, see `joined_interests`; null if there are none, or if they are
            not known before the row's target, see `interests_known`.
        max_history: newest items that are kept of a history.
        shown: the interests that each row's prompt shows, see `ShownInterests`; null if it shows none.
    """
    history, target = rows["history"].combine_chunks(), rows["target"].combine_chunks()
    places, ends = item_places(history.flatten(), sids), np.cumsum(history.value_lengths().to_numpy())
    starts = np.maximum(np.r_[0, ends[:-1]], ends - max_history)
    spans = [slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    sid_texts, titles = np.array(sids.texts, object), texts.titles.take(pa.array(places)).fill_null("").to_pylist()
    written = [sid_texts[places[span]].tolist() for span in spans]
    prompts = pa.array([history_prompt(sids) for sids in written], pa.string())
    both = [history_prompt(sids, text) if text else None for sids, text in zip(written, shown.to_pylist(), strict=True)]
    titled = pa.array(["\n".join(titles[span]) for span in spans], pa.string())
    goal = pa.array(item_places(target, sids))
    own = pa.array(sids.texts, pa.string()).take(goal)
    parts = {
        "history_to_title": (_prompt("", prompts, "\nTitle:"), _line(texts.titles.take(goal))),
        "titles_to_sid": (_prompt(TITLES, titled, "\nItem: "), own),
        "user_interest_to_sid": (_prompt(USER_INTERESTS, interests, "\nItem: "), own),
        "interest_history_to_sid": (pa.array(both, pa.string()), own),
    }
    ids = rows["example_id"].combine_chunks()
    return _rows(tasks, parts, example_ids=ids, user_ids=rows["user_id"].combine_chunks(), targets=target)


def _prompt(before: str, texts: pa.Array, behind: str) -> pa.Array:
    return pc.binary_join_element_wise(before, texts, behind, "")


def _line(texts: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(" ", texts, "\n", "")


def _rows(
    tasks: TasksConfig,
    parts: dict[str, tuple[pa.Array, pa.Array]],
    *,
    example_ids: pa.Array,
    user_ids: pa.Array,
    targets: pa.Array,
) -> pa.Table:
    """Concatenate the configured tasks, without rows whose prompt or completion is null."""
    schema, tables = table_spec("policy_examples").schema, []
    for task, (prompts, completions) in parts.items():
        if getattr(tasks, task):
            columns = {
                "example_id": pc.binary_join_element_wise(task, example_ids, "/"),
                "user_id": user_ids,
                "task": pa.array([task] * len(prompts), pa.string()),
                "split": pa.array(["train"] * len(prompts), pa.string()),
                "prompt": prompts,
                "completion": completions,
                "target": targets,
            }
            table = pa.table(columns)
            complete = pc.and_(table["prompt"].is_valid(), table["completion"].is_valid())
            tables.append(table.filter(complete).cast(schema))
    return pa.concat_tables([schema.empty_table(), *tables])
