"""A tiny run with a ranking index and a ranker over random sources."""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config.interests import EmbeddingsConfig
from digr.config.models import EncoderConfig
from digr.config.ranking import RankingConfig
from digr.ranking.features import CONTEXT, group_of
from digr.ranking.ranker import RankingExamples, fit_trees
from digr.ranking.steering import carriers_of
from digr.ranking.systems import SERVED, feature_names
from digr.ranking.views import View, save_arrays
from digr.tables import conform
from serve.items.encoders import get_encoder
from tests.ranking.tiny_view import GRAINS, random_view, save_view
from tests.serve.tiny_run import NUM_ITEMS, put

INTERESTS = ["weekend trout fishing", "home espresso brewing", "indoor bonsai care", "winter camping trips", "marathon running"]
"""Of the fine grain of the view."""


def write_ranker(store: Store, view: View | None = None) -> None:
    """Write the arrays of a view, by default of random sources, and trees that like some of the features."""
    names = feature_names(SERVED, GRAINS)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6000, len(names))).astype(np.float32)
    features[:, [group_of(name) == "image" for name in names]] = 0  # as in a run without images
    wish = features[:, [name not in CONTEXT for name in names]].sum(1).reshape(-1, 20)
    is_target = (np.arange(20) == wish.argmax(1)[:, None]).ravel()
    config = RankingConfig(rounds=10, min_leaf_candidates=20)
    ranker = fit_trees(RankingExamples(features, np.arange(0, 6001, 20), is_target), names, config, seed=0, num_threads=1)
    view = view or random_view(5, num_items=NUM_ITEMS)
    for name, inner, fill in (("ranking_index", ".", partial(save_view, view)), ("ranker", "ranked/test", ranker.save)):
        folder = Path(artifacts.begin(store, name), inner)
        folder.mkdir(parents=True, exist_ok=True)
        fill(folder)
        if name == "ranking_index":
            save_arrays(folder, carriers_of(view.families["interests"].groups[0]), "interests.carriers")
            save_arrays(folder, get_encoder(EncoderConfig())(INTERESTS), "interests.centroids")
        config = {"ranking": {"interest_cosines": [0.7, 0.45]}, "embeddings": EmbeddingsConfig().model_dump(mode="json")}
        artifacts.commit(store, Manifest(name=name, config=config))
    numbers = [[group, 0] for group in range(len(INTERESTS))]
    names = [[name, INTERESTS[0]] for name in INTERESTS]
    table = pa.table({"interest": INTERESTS, "num_items": [1] * len(INTERESTS), "groups": numbers, "names": names})
    put(store, "canonical_interests", conform("canonical_interests", table, "test"))
