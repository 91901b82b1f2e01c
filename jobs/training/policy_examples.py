"""The artifact `policy_examples`, and for a backbone that can read the words of items, users and codes."""

from collections.abc import Iterator
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.interests.prompts import interests_known
from digr.policy.codewords import codeword_texts
from digr.policy.examples import policy_examples
from digr.policy.tasks import (
    INTEREST_SEPARATOR,
    ItemTexts,
    history_task_examples,
    item_task_examples,
    joined_interests,
    plain_text,
)
from digr.policy.training.batches import Texts
from digr.sids.trie import SidTrie
from digr.tables import conform
from jobs.runtime.parts import read_parts
from jobs.runtime.stage import Made
from jobs.training import policy_data as data

STAGE = "policy_examples"
LABEL_COLUMNS = ["owner", "owner_id", "rank", "interest", "probability", "label"]


def reads_text(config: Config) -> bool:
    """Whether the backbone can read: then tasks in words join the training."""
    return config.policy.backbone == "hf"


def build_examples(config: Config, store: Store) -> Made:
    """Write `policy_examples` with Ray Data, part by part of `histories` (and of `items`)."""

    def convert(rows: pa.Table) -> pa.Table:
        return history_examples(rows, config, store)

    def describe(rows: pa.Table) -> pa.Table:
        return item_task_examples(
            rows["item_id"].combine_chunks(), data.load_sids(store), load_texts(config, store), config.tasks
        )

    made = read_parts(store.uri("histories")).map_batches(convert, batch_size=None, batch_format="pyarrow")
    if reads_text(config):
        made = made.union(read_parts(store.uri("items")).map_batches(describe, batch_size=None, batch_format="pyarrow"))
    filesystem, path = artifacts.filesystem_of(store.uri(STAGE))
    made.write_parquet(path, filesystem=filesystem)
    written = artifacts.open_parts(store.uri(STAGE))
    counts = {split: written.count_rows(filter=pc.field("split") == split) for split in ("train", "valid")}
    for split, count in counts.items():
        if count < config.train.num_workers:
            raise ValueError(
                f"{store.uri('histories')}: {count} examples of split {split} for {config.train.num_workers} workers; "
                f"give more data, choose another data.split, or lower train.num_workers"
            )
    return Made(sum(counts.values()), facts={f"num_{split}": count for split, count in counts.items()})


def history_examples(rows: pa.Table, config: Config, store: Store) -> pa.Table:
    """Make the examples of some rows of `histories`, in their order, for a backbone that reads also the tasks in words."""
    max_history = config.data.max_history
    rows, sids = conform("histories", rows, store.uri("histories")), data.load_sids(store)
    made = policy_examples(rows, sids, max_history)
    if not reads_text(config):
        return made
    is_end = pc.is_in(rows["example_id"], made.filter(pc.equal(made["split"], "train"))["example_id"].combine_chunks())
    ends, known = rows.filter(is_end), pa.array(interests_known(rows, _goes_on(rows, store))).filter(is_end.combine_chunks())
    users = ends["user_id"].combine_chunks()
    labels = artifacts.read_table(store, "interest_labels", LABEL_COLUMNS, owner=["user"], owner_id=users.unique().to_pylist())
    interests = pc.if_else(known, joined_interests(labels, "user", users, config.tasks.max_text_chars), None)
    return pa.concat_tables(
        [made, history_task_examples(ends, sids, load_texts(config, store), interests, config.tasks, max_history)]
    )


def _goes_on(rows: pa.Table, store: Store) -> bool:
    """Whether the user of the last row has training rows behind it."""
    if not len(rows) or rows["split"][-1].as_py() != "train":
        return False
    users = [rows["user_id"][-1].as_py()]
    return (
        artifacts.read_table(store, "histories", ["example_id"], user_id=users, split=["train"])["example_id"][-1]
        != rows["example_id"][-1]
    )


def load_texts(config: Config, store: Store) -> ItemTexts:
    """Read titles and trusted interests of all items with a SID; a process that has read them keeps them."""
    return _read_texts(store, artifacts.require(store, "item_sids").digest, config.tasks.max_text_chars)


@lru_cache(maxsize=1)
def _read_texts(store: Store, digest: str, max_chars: int) -> ItemTexts:
    ids = data.load_sids(store).item_index.ids
    items = artifacts.read_table(store, "items", ["item_id", "title"])
    titles = plain_text(items["title"].combine_chunks(), max_chars).take(pc.index_in(ids, items["item_id"].combine_chunks()))
    labels = artifacts.read_table(store, "interest_labels", LABEL_COLUMNS, owner=["item"])
    return ItemTexts(titles, joined_interests(labels, "item", ids, max_chars))


def code_texts(config: Config, store: Store, trie: SidTrie) -> list[list[str]] | None:
    """Say in words what each code stands for, from its items' trusted interests, and titles where there are none."""
    if not (reads_text(config) and config.policy.init_from_texts):
        return None
    texts = load_texts(config, store)
    words = pc.coalesce(texts.interests, texts.titles, pa.scalar("", pa.string()))
    words = words.take(pa.array(data.load_sids(store).item_index.find(trie.item_ids)))
    return codeword_texts(trie.codes.numpy(), pc.split_pattern(words, INTEREST_SEPARATOR), trie.level_sizes)


def read_texts(config: Config, batches: Iterator[pa.Table]) -> Iterator[Texts]:
    """Turn `policy_examples` rows into texts, each seen as often as `tasks` says."""
    rates = config.tasks.model_dump()
    for batch in batches:
        wanted = [rates.get(task, 1.0) for task in batch["task"].to_pylist()]
        yield Texts(batch["prompt"].to_pylist(), batch["completion"].to_pylist(), wanted)
