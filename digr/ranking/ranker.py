"""Order candidates by LightGBM's LambdaRank, monotone in counts, or by a log-linear gate.

Both learn from requests with a known next item, which are later than the data of their features.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import lightgbm as lgb
import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy.optimize import minimize

from digr.config.ranking import RankingConfig
from digr.ranking.features import CONTEXT, MONOTONE
from digr.ranking.trees import LeafTables, Leaves, explain_rows, leaf_tables, read_leaves, score_rows

GATE = "gate.json"


class RankingExamples(NamedTuple):
    """C candidates of B requests with a known target, grouped by request; the candidates include the target."""

    features: Float32[np.ndarray, "C F"]
    start: Int[np.ndarray, " B1"]
    is_target: Bool[np.ndarray, " C"]


class Ranker(Protocol):
    """Scores candidates by their features."""

    def score(self, features: Float32[np.ndarray, "C F"]) -> Float[np.ndarray, " C"]:
        """Return a score per candidate, comparable within a request."""

    def contributions(self, features: Float32[np.ndarray, "C F"]) -> Float[np.ndarray, "C F"]:
        """Return each feature's contribution to the score, up to a constant per request."""

    def save(self, folder: Path) -> None:
        """Write the ranker as text files."""


class Trees(NamedTuple):
    """The mean of boosted trees of several seeds, evaluated by `digr.ranking.trees`."""

    boosters: list[lgb.Booster]
    leaves: list[Leaves]
    tables: LeafTables

    def score(self, features: Float32[np.ndarray, "C F"]) -> Float[np.ndarray, " C"]:
        """Return the mean of the boosters' scores."""
        return score_rows(self.tables, features)

    def contributions(self, features: Float32[np.ndarray, "C F"]) -> Float[np.ndarray, "C F"]:
        """Return the mean of the boosters' SHAP values."""
        return explain_rows(self.leaves, features)

    def save(self, folder: Path) -> None:
        """Write each booster in LightGBM's own text form."""
        for number, booster in enumerate(self.boosters):
            booster.save_model(str(folder / f"trees_{number}.txt"))


class Gate(NamedTuple):
    """A log-linear model: the score is a weighted sum of features, with weights that are linear in the request's context."""

    weights: Float[np.ndarray, "F X"]
    """Weights for the constant 1 and each of `CONTEXT`."""
    mean: Float[np.ndarray, " F"]
    scale: Float[np.ndarray, " F"]
    context: Int[np.ndarray, " x"]
    """Columns of the features that are a request's context."""

    def inputs(self, features: Float32[np.ndarray, "C F"]) -> tuple[Float[np.ndarray, "C F"], Float[np.ndarray, "C X"]]:
        """Return standardised features without the context, and the context with a leading 1."""
        scaled = (features - self.mean) / self.scale
        context = np.concatenate([np.ones((len(scaled), 1)), scaled[:, self.context]], axis=1)
        scaled[:, self.context] = 0
        return scaled, context

    def score(self, features: Float32[np.ndarray, "C F"]) -> Float[np.ndarray, " C"]:
        """Return the sum over features."""
        return self.contributions(features).sum(1)

    def contributions(self, features: Float32[np.ndarray, "C F"]) -> Float[np.ndarray, "C F"]:
        """Return each feature's term of the sum."""
        scaled, context = self.inputs(features)
        return scaled * (context @ self.weights.T)

    def save(self, folder: Path) -> None:
        """Write the weights as JSON."""
        (folder / GATE).write_text(json.dumps({name: getattr(self, name).tolist() for name in self._fields}))


def trees_of(boosters: list[lgb.Booster]) -> Trees:
    """Return the mean of some boosters."""
    leaves = read_leaves(boosters)
    return Trees(boosters, leaves, leaf_tables(leaves, boosters[0].num_feature()))


def load_ranker(folder: Path) -> Ranker:
    """Load a ranker that `save` wrote.

    Raises:
        ValueError: the folder has no ranker.
    """
    if (folder / GATE).is_file():
        return Gate(**{name: np.array(values) for name, values in json.loads((folder / GATE).read_text()).items()})
    files = sorted(folder.glob("trees_*.txt"))
    if not files:
        raise ValueError(f"{folder}: no ranker; run `digr train ranker CONFIG --force` to make it")
    return trees_of([lgb.Booster(model_file=str(file)) for file in files])


def fit_ranker(examples: RankingExamples, names: Sequence[str], config: RankingConfig, *, seed: int, num_threads: int) -> Ranker:
    """Fit the configured kind of ranker."""
    if config.model == "gate":
        return fit_gate(examples, names, l2=config.gate_l2)
    return fit_trees(examples, names, config, seed=seed, num_threads=num_threads)


def fit_trees(examples: RankingExamples, names: Sequence[str], config: RankingConfig, *, seed: int, num_threads: int) -> Trees:
    """Fit LambdaRank; scores never decrease with a feature of `MONOTONE`."""
    parameters = {
        "objective": "lambdarank",
        "learning_rate": 0.08,
        "num_leaves": config.leaves,
        "min_data_in_leaf": config.min_leaf_candidates,
        "feature_fraction": 0.7,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "lambdarank_truncation_level": 15,
        "lambda_l2": 5.0,
        "monotone_constraints": [int(name in MONOTONE) for name in names],
        "num_threads": num_threads,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    data = lgb.Dataset(
        examples.features,
        examples.is_target.astype(np.int8),
        group=np.diff(examples.start),
        feature_name=list(names),
        params=parameters,
    )
    return trees_of([lgb.train(parameters | {"seed": seed + number}, data, config.rounds) for number in range(config.seeds)])


def fit_gate(examples: RankingExamples, names: Sequence[str], *, l2: float) -> Gate:
    """Fit a softmax over each request's candidates by L-BFGS."""
    features = examples.features.astype(np.float64)
    context = np.array([names.index(name) for name in CONTEXT])
    empty = Gate(np.zeros((len(names), 1 + len(context))), features.mean(0), features.std(0) + 1e-6, context)
    scaled, contexts = empty.inputs(examples.features)
    start, target = examples.start[:-1], np.flatnonzero(examples.is_target)
    request = np.repeat(np.arange(len(start)), np.diff(examples.start))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(empty.weights.shape)
        score = (scaled * (contexts @ weights.T)).sum(1)
        top = np.maximum.reduceat(score, start)
        exp = np.exp(score - top[request])
        total = np.add.reduceat(exp, start)
        value = (np.log(total) + top - score[target]).mean() + l2 * (flat**2).sum()
        slope = exp / total[request]
        slope[target] -= 1
        gradient = (scaled * slope[:, None]).T @ contexts / len(start) + 2 * l2 * weights
        return float(value), gradient.ravel()

    found = minimize(loss, empty.weights.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return empty._replace(weights=found.x.reshape(empty.weights.shape))


def best_of(
    score: Float[np.ndarray, " C"], request: Int[np.ndarray, " C"], num_requests: int, k: int
) -> tuple[Int[np.ndarray, " c"], Int[np.ndarray, " B1"]]:
    """Return the rows of each request's k best candidates, best first, and the start of each request.

    Equal scores keep the order of the candidates.
    """
    order = np.lexsort((-score, request))
    counts = np.bincount(request, minlength=num_requests)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[place < k], np.concatenate([[0], np.cumsum(np.minimum(counts, k))])
