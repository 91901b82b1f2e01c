"""Rankers learn a planted rule, respect their monotone constraints, and survive saving and loading."""

import numpy as np
import pytest

from digr.config.ranking import RankingConfig
from digr.ranking.features import base_names
from digr.ranking.ranker import RankingExamples, best_of, fit_ranker, load_ranker

NAMES = base_names()
REQUESTS, CANDIDATES = 400, 20


def examples(seed=0, sign=1.0):
    """Targets have a large value of `text_last`, and `transitions` of the given sign."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(REQUESTS * CANDIDATES, len(NAMES))).astype(np.float32)
    wish = 2 * features[:, NAMES.index("text_last")] + sign * features[:, NAMES.index("transitions")]
    wish = wish.reshape(REQUESTS, CANDIDATES) + rng.gumbel(size=(REQUESTS, CANDIDATES))
    is_target = (np.arange(CANDIDATES) == wish.argmax(1)[:, None]).ravel()
    return RankingExamples(features, np.arange(REQUESTS + 1) * CANDIDATES, is_target)


def hit_rate(ranker, given):
    best = ranker.score(given.features).reshape(REQUESTS, CANDIDATES).argmax(1)
    return float(given.is_target.reshape(REQUESTS, CANDIDATES)[np.arange(REQUESTS), best].mean())


def fit(kind, given):
    config = RankingConfig(model=kind, rounds=60, min_leaf_candidates=20)
    return fit_ranker(given, NAMES, config, seed=0, num_threads=1)


@pytest.mark.parametrize("kind", ["trees", "gate"])
def test_it_finds_the_target_and_comes_back_from_its_files(kind, tmp_path):
    ranker, held_out = fit(kind, examples()), examples(seed=1)
    assert hit_rate(ranker, held_out) > 0.4  # chance is .05
    ranker.save(tmp_path)
    again = load_ranker(tmp_path)
    assert again.score(held_out.features) == pytest.approx(ranker.score(held_out.features), abs=1e-6)
    parts, score = ranker.contributions(held_out.features[:50]), ranker.score(held_out.features[:50])
    constant = score - parts.sum(1)
    assert constant == pytest.approx(np.full(50, constant[0]), abs=1e-4)
    assert np.abs(parts).mean(0).argmax() == NAMES.index("text_last")


def test_trees_never_fall_in_counts_even_where_the_examples_do():
    ranker = fit("trees", examples(sign=-2.0))
    rows = np.repeat(examples(seed=2).features[:40], 9, axis=0)
    rows[:, NAMES.index("transitions")] = np.tile(np.linspace(-3, 3, 9), 40)
    assert (np.diff(ranker.score(rows).reshape(40, 9), axis=1) >= 0).all()
    rows[:, NAMES.index("text_last")] = np.tile(np.linspace(3, -3, 9), 40)
    assert (np.diff(ranker.score(rows).reshape(40, 9), axis=1) < 0).any()


def test_the_same_seed_gives_the_same_trees(tmp_path):
    texts = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        fit("trees", examples()).save(folder)
        texts.append([file.read_text() for file in sorted(folder.iterdir())])
    assert len(texts[0]) == 2
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]


def test_a_folder_without_a_ranker_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no ranker; run `digr train ranker CONFIG"):
        load_ranker(tmp_path)


def test_the_best_are_listed_first_and_equal_ones_in_their_order():
    score, request = np.array([0.5, 0.9, 0.5, 0.1, 7.0]), np.array([0, 0, 0, 0, 2])
    rows, start = best_of(score, request, 3, 3)
    assert rows.tolist() == [1, 0, 2, 4]
    assert start.tolist() == [0, 3, 3, 4]
