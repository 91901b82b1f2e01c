"""Build `policy_examples`; for a pretrained backbone also texts of items, users and codes."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.partitions import Part, iter_aligned, iter_part, iter_users, parts_of, read_part
from digr.policy.examples import policy_examples
from digr.policy.tasks import (
    INTEREST_SEPARATOR,
    ItemTexts,
    codeword_texts,
    history_task_examples,
    item_task_examples,
    joined_interests,
    plain_text,
)
from digr.policy.training.batches import Texts
from digr.policy.user_interests import ShownInterests
from digr.sids.trie import SidTrie
from digr.tables import Owner, flat_interests
from jobs.runtime.datasets import OutputTables, map_parts
from jobs.runtime.stage import Output
from jobs.training import policy_data as data
from jobs.training.policy_data import BATCH_ROWS

STAGE = "policy_examples"


def reads_text(config: Config) -> bool:
    """Whether the backbone is pretrained, so that training includes text tasks."""
    return config.policy.backbone == "hf"


def build_examples(config: Config, store: Store) -> Output:
    """Write `policy_examples` with Ray, part by part of `histories` (and of `items`)."""
    owners: list[Owner] = ["item", "user"] if reads_text(config) else ["user"]
    parts = [part for owner in owners for part in parts_of(store, owner)]
    task: Any = ray.remote(load_texts)
    texts = task.remote(config, store) if reads_text(config) else None
    map_parts(config, store, _examples_of_part, parts, [STAGE], arguments=(texts,))
    written = artifacts.open_parts(store.uri(STAGE))
    counts = {split: written.count_rows(filter=pc.field("split") == split) for split in ("train", "valid")}
    for split, count in counts.items():
        if count < config.train.num_workers:
            raise ValueError(
                f"{store.uri('histories')}: {count} examples of split {split} for {config.train.num_workers} workers; "
                f"give more data, choose another data.split, or lower train.num_workers"
            )
    facts = {f"num_{split}": count for split, count in counts.items()} | {"max_history": data.max_history(config, store)}
    return Output(sum(counts.values()), facts=facts | data.count_cut(config, store, tuple(counts)))


def _examples_of_part(part: Part, config: Config, store: Store, texts: Any) -> OutputTables:
    """Yield the examples of a part of items or users.

    Args:
        texts: reference to the texts of all items, for a pretrained backbone.
    """
    sids, max_history = data.load_sids(store), data.max_history(config, store)
    if part.owner == "item":
        for items in iter_part(store, "items", part, BATCH_ROWS, ["item_id"]):
            yield STAGE, item_task_examples(items["item_id"].combine_chunks(), sids, ray.get(texts), config.tasks)
        return
    labels = flat_interests(read_part(store, "interest_labels", part)) if _users_are_labelled(config) else None
    most, max_chars = config.policy.prompt_interests, config.tasks.max_text_chars
    known, shown = ShownInterests(labels, None, max_chars), ShownInterests(labels if most else None, most, max_chars)
    for rows in iter_users(store, "histories", part, BATCH_ROWS):  # a user's rows become sequences together
        in_prompts = shown.of_rows(rows)
        made = policy_examples(rows, sids, max_history, in_prompts)
        yield STAGE, made
        if texts is not None:
            trained = made.filter(pc.equal(made["split"], "train"))["example_id"].combine_chunks()
            ends = pc.is_in(rows["example_id"], trained).combine_chunks()  # the rows in which training sequences end
            interests, in_prompts = known.of_rows(rows).filter(ends), in_prompts.filter(ends)
            yield (
                STAGE,
                history_task_examples(
                    rows.filter(ends), sids, ray.get(texts), interests, config.tasks, max_history=max_history, shown=in_prompts
                ),
            )


def _users_are_labelled(config: Config) -> bool:
    return reads_text(config) and "user" in config.interests.owners


def load_texts(config: Config, store: Store) -> ItemTexts:
    """Read titles and trusted interests of all items with a SID, part by part; a process that has read them keeps them."""
    return _read_texts(store, artifacts.require(store, "item_sids").digest, config.tasks.max_text_chars)


@lru_cache(maxsize=1)
def _read_texts(store: Store, digest: str, max_chars: int) -> ItemTexts:
    item_ids, titles, interests = [], [], []
    for part in parts_of(store, "item"):
        for items, labels in iter_aligned(store, ("items", "interest_labels"), part, BATCH_ROWS):
            ids = items["item_id"].combine_chunks()
            item_ids.append(ids)
            titles.append(plain_text(items["title"].combine_chunks(), max_chars))
            interests.append(joined_interests(flat_interests(labels), "item", ids, max_chars))
    known = pa.chunked_array(item_ids, pa.string()).combine_chunks()
    places = pc.index_in(data.load_sids(store).item_index.ids, known)
    columns = (pa.chunked_array(texts, pa.string()).combine_chunks().take(places) for texts in (titles, interests))
    return ItemTexts(*columns)


def code_texts(config: Config, store: Store, trie: SidTrie) -> list[list[str]] | None:
    """Return a text for each code, from its items' trusted interests, or titles if there are none."""
    if not (reads_text(config) and config.policy.init_from_texts):
        return None
    texts = load_texts(config, store)
    words = pc.coalesce(texts.interests, texts.titles, pa.scalar("", pa.string()))
    words = words.take(pa.array(data.load_sids(store).item_index.find(trie.item_ids)))
    return codeword_texts(trie.codes.numpy(), pc.split_pattern(words, INTEREST_SEPARATOR), trie.level_sizes)


def read_texts(config: Config, batches: Iterator[pa.Table]) -> Iterator[Texts]:
    """Turn `policy_examples` rows into texts with the rates of `tasks`."""
    rates = config.tasks.model_dump()
    for batch in batches:
        wanted = [rates.get(task, 1.0) for task in batch["task"].to_pylist()]
        yield Texts(batch["prompt"].to_pylist(), batch["completion"].to_pylist(), wanted)
