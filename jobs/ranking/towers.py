"""Towers with Ray: the task that trains one, and the worker that turns histories into the lists of all tower systems."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int
from torch import Tensor

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.run import TowersConfig
from digr.data.ids import IdIndex, build_id_index
from digr.data.transitions import read_sequences
from digr.evaluation.towers import (
    TEXT_TOWER,
    TOWERS,
    Tower,
    ValidRows,
    fit_tower,
    load_tower,
    rank_systems,
    save_tower,
    training_windows,
)
from digr.partitions import Part, iter_part
from digr.ranking.building import read_content_vectors
from digr.ranking.examples import histories_of
from digr.tables import HELD_OUT
from jobs.ranking.recommender import BATCH_HISTORIES, names_of

STAGE = "towers"


def fit_one(config: Config, store: Store, name: str) -> Iterator[dict[str, float]]:
    """Train a tower, yielding the metrics of each epoch, and write the weights of the best one."""
    device = _prepare(config)
    torch.manual_seed(config.run.seed)
    items, max_history = _items(store), config.data.max_history
    windows = training_windows(read_sequences(store, partial(items.find_all, where="histories")), max_history)
    valid = _valid_rows(config, store, items)
    tower = Tower(config.towers, len(items), max_history, _texts(store, name)).to(device)
    yield from fit_tower(tower, windows, valid, config.towers, rng=np.random.default_rng(config.run.seed))
    with tempfile.TemporaryDirectory() as folder:
        save_tower(tower, Path(folder), name)
        artifacts.put_files(store, STAGE, Path(folder))


class RankTowers:
    """Turn a part of `histories` into the same parts of `recommendations/<system>_<split>`, for all systems made of towers."""

    def __init__(self, config: Config, store: Store) -> None:
        device = _prepare(config)
        self.config, self.store, self.items = config, store, _items(store)
        with artifacts.local_files(store, STAGE) as folder:
            learned = TowersConfig.model_validate(artifacts.require(store, STAGE).config[STAGE])
            self.towers = {
                name: load_tower(folder, name, learned, len(self.items), _texts(store, name)).to(device) for name in TOWERS
            }

    def __call__(self, part: Part) -> Iterator[tuple[str, pa.Table]]:
        """Rank items for a part."""
        generator = torch.Generator().manual_seed(int(np.random.default_rng([self.config.run.seed, part.number]).integers(2**63)))
        for table in iter_part(self.store, "histories", part, BATCH_HISTORIES):
            for split in HELD_OUT:
                rows = table.filter(pc.equal(table["split"], split))
                histories = histories_of(rows, self.items, self.config.data.max_history)
                for batch, best in rank_systems(self.towers, histories, self.config.decoding.k, generator):
                    for system, (scores, places) in best.items():
                        yield names_of(system)[split], self._table(rows["example_id"][batch], places, scores)

    def _table(self, example_ids: pa.ChunkedArray, places: Int[Tensor, "B k"], scores: Float[Tensor, "B k"]) -> pa.Table:
        ends = pa.array(np.arange(len(places) + 1) * places.shape[1], pa.int32())
        item_ids = self.items.ids.take(pa.array(places.flatten().numpy()))
        columns = {
            "example_id": example_ids,
            "item_ids": pa.ListArray.from_arrays(ends, item_ids),
            "scores": pa.ListArray.from_arrays(ends, pa.array(scores.flatten().numpy())),
        }
        return pa.table(columns)


def _prepare(config: Config) -> str:
    """Set the threads of this process, and return the device."""
    torch.set_num_threads(config.cluster.encode_threads)
    return "cuda" if config.cluster.use_gpu else "cpu"


def _items(store: Store) -> IdIndex:
    return build_id_index(artifacts.read_table(store, "items", ["item_id"])["item_id"])


def _texts(store: Store, name: str) -> Float[Tensor, "N D"] | None:
    """Return the items' text vectors for a tower; None if it uses none."""
    return torch.from_numpy(np.concatenate([*read_content_vectors(store, "text")])) if name == TEXT_TOWER else None


def _valid_rows(config: Config, store: Store, items: IdIndex) -> ValidRows:
    """Draw about `towers.max_valid_examples` validation rows, with a separate random generator."""
    rng = np.random.default_rng(config.run.seed)
    rows = artifacts.dataset_of(store, "histories").filter(pc.field("split") == "valid")
    rate = config.towers.max_valid_examples / max(1, rows.count_rows())
    batches = rows.to_batches(columns=["history", "target"])
    drawn = pa.Table.from_batches([batch.filter(pa.array(rng.random(len(batch)) < rate)) for batch in batches])
    return ValidRows(histories_of(drawn, items, config.data.max_history), items.find_all(drawn["target"], "histories, valid"))
