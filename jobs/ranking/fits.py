"""Fit rankers with Ray: make examples by part of users, then fit one ranker after another in each worker."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import TaskPoolStrategy

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.data.ids import build_id_index
from digr.partitions import Part, read_part
from digr.ranking.examples import FOLDS, example_rows, histories_of, is_fit_row, ranking_examples, thin
from digr.ranking.features import pool_lists
from digr.ranking.ranker import fit_ranker
from digr.ranking.sources import propose
from digr.ranking.systems import build_features, families_of, feature_names, systems_of
from digr.ranking.views import load_view

RANKER, EXAMPLES = "ranker", "ranking_examples"
BATCH_REQUESTS = 512
EXPLAINED = 2000
"""Candidates over which the shares of features are averaged."""
Fitted = Literal["valid", "test"]
"""The split that a ranker orders; it learns only from earlier rows."""
LEARNED_FROM: dict[Fitted, tuple[str, ...]] = {"valid": FOLDS[:1], "test": FOLDS}


class Examples:
    """Turn a part of `histories` into one of `ranking_examples`."""

    def __init__(self, config: Config, store: Store, first_number: int, chosen: Any, rate: float) -> None:
        self.config, self.store, self.rate = config, store, rate
        self.first_number, self.chosen = first_number, chosen
        self.items = build_id_index(artifacts.read_table(store, "items", ["item_id"])["item_id"])
        self.systems = systems_of(config.ranking.ablations)
        families, grains = families_of(self.systems), len(config.ranking.interest_cosines)
        with artifacts.local_files(store, "ranking_index") as folder:
            periods = {"before": "before", "valid": "all"}
            self.views = {fold: load_view(folder, periods[fold], families, grains) for fold in FOLDS}  # type: ignore[arg-type]

    def __call__(self, part: Part) -> Iterator[tuple[str, pa.Table]]:
        """Make the examples of a part's users."""
        rng = np.random.default_rng([self.config.run.seed, part.number])
        histories = read_part(self.store, "histories", part)
        train = histories.filter(pc.equal(histories["split"], "train"))
        folds = {
            "before": train.filter(pa.array(is_fit_row(train, self.chosen, self.first_number))),
            "valid": histories.filter(pc.equal(histories["split"], "valid")),
        }
        for fold, rows in folds.items():
            drawn = rows.filter(pa.array(rng.random(len(rows)) < self.rate))
            for start in range(0, len(drawn), BATCH_REQUESTS):
                yield EXAMPLES, self.make(fold, drawn.slice(start, BATCH_REQUESTS), rng)

    def make(self, fold: str, rows: pa.Table, rng: np.random.Generator) -> pa.Table:
        """Make the examples of some rows."""
        view = self.views[fold]
        histories = histories_of(rows, self.items, self.config.data.max_history)
        target = self.items.find_all(rows["target"], "histories")
        pooled = pool_lists(view, histories)
        thinned = thin(propose(view, histories, pooled), target, self.systems, self.config.ranking.fit_candidates, rng)
        features = build_features(view, histories, pooled, thinned.candidates)
        return example_rows(rows["example_id"], fold, thinned, features)


class Fit(NamedTuple):
    """A ranker to fit."""

    system: str
    fitted: Fitted


def fit_all(config: Config, store: Store, wanted: Sequence[Fit]) -> Iterator[dict[str, Any]]:
    """Fit rankers, `cluster.encode_workers` at once; yield the facts of each for the manifest."""
    blocks = ray.data.from_arrow([pa.table({"system": [each.system], "fitted": [each.fitted]}) for each in wanted])
    call: Any = _fit
    found = blocks.map_batches(
        call,
        batch_size=None,
        batch_format="pyarrow",
        fn_args=(config, store),
        compute=TaskPoolStrategy(size=config.cluster.encode_workers),
    )
    for batch in found.iter_batches(batch_size=None, batch_format="pyarrow"):
        assert isinstance(batch, pa.Table)
        for row in batch.to_pylist():
            yield {row["name"]: json.loads(row["facts"])}


def _fit(block: pa.Table, config: Config, store: Store) -> pa.Table:
    rows = [Fit(**row) for row in block.to_pylist()]
    facts = [json.dumps(_fit_one(config, store, each)) for each in rows]
    return pa.table({"name": [f"{each.system}/{each.fitted}" for each in rows], "facts": facts})


def _fit_one(config: Config, store: Store, wanted: Fit) -> dict[str, Any]:
    """Fit one ranker and write it."""
    systems, grains = systems_of(config.ranking.ablations), len(config.ranking.interest_cosines)
    system = next(each for each in systems if each.name == wanted.system)
    folds = list(LEARNED_FROM[wanted.fitted])
    batches = artifacts.open_parts(store.uri(EXAMPLES)).to_batches(filter=pc.field("fold").isin(folds))
    examples = ranking_examples(batches, system, families_of(systems), grains)
    names = feature_names(system, grains)
    ranker = fit_ranker(examples, names, config.ranking, seed=config.run.seed, num_threads=config.cluster.encode_threads)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / system.name / wanted.fitted
        target.mkdir(parents=True)
        ranker.save(target)
        artifacts.put_files(store, RANKER, Path(folder))
    worth = np.abs(ranker.contributions(examples.features[:EXPLAINED])).mean(0)
    shares = {name: round(float(value), 4) for name, value in zip(names, worth / max(worth.sum(), 1e-9), strict=True)}
    return {"requests": len(examples.start) - 1, "candidates": len(examples.features), "feature_shares": shares}
