"""The trained baselines on planted sequences whose next items are known."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from digr.config.run import MAX_TOWER_ITEMS, TowersConfig
from digr.data.ids import build_id_index
from digr.data.transitions import TrainingSequences, training_sequences
from digr.evaluation.towers import (
    NO_ITEM,
    Tower,
    ValidRows,
    fit_tower,
    load_tower,
    pad,
    rank_systems,
    save_tower,
    score_histories,
    training_windows,
)
from digr.ranking.neighbours import HistoryItems

NUM_ITEMS, LENGTH = 12, 6
SMALL = TowersConfig(dim=32, num_layers=1, dropout=0.0, lr=0.02, epochs=8, patience=3, batch_size=8)


def _ring(num_users: int, step: int = 1, skip: int | None = None) -> np.ndarray:
    """Walks around a ring of items; none that touches `skip`."""
    walks = (np.arange(num_users)[:, None] % NUM_ITEMS + step * np.arange(LENGTH)) % NUM_ITEMS
    return walks[~(walks == skip).any(1)]


def _histories(rows: np.ndarray) -> HistoryItems:
    return HistoryItems(rows.ravel(), np.arange(len(rows) + 1) * rows.shape[1])


def _tower(text: torch.Tensor | None = None, config: TowersConfig = SMALL) -> Tower:
    torch.manual_seed(0)
    return Tower(config, NUM_ITEMS, LENGTH - 1, text)


def _fit(tower: Tower, walks: np.ndarray, valid: np.ndarray, config: TowersConfig = SMALL) -> list[dict[str, float]]:
    rows = ValidRows(_histories(valid[:, :-1]), valid[:, -1])
    return list(fit_tower(tower, _histories(walks), rows, config, rng=np.random.default_rng(0)))


def _best(tower: Tower, rows: np.ndarray) -> list[int]:
    return torch.cat([scores.argmax(1) for _, scores in score_histories(tower.eval(), _histories(rows))]).tolist()


def _texts() -> torch.Tensor:
    """Vectors of texts that have nothing in common."""
    return torch.eye(NUM_ITEMS)


@pytest.mark.parametrize("text", [None, _texts()], ids=["ids", "texts"])
def test_a_tower_learns_the_next_item(text):
    tower, walks = _tower(text), _ring(48)
    told = _fit(tower, walks, walks[:NUM_ITEMS, :2])
    assert max(epoch["ndcg@10"] for epoch in told) == 1
    short = np.arange(NUM_ITEMS)[:, None]
    assert _best(tower, short) == [(item + 1) % NUM_ITEMS for item in range(NUM_ITEMS)]


def test_the_order_of_a_history_matters():
    forward, backward = _ring(48), _ring(48, step=-1)
    tower = _tower()
    both = np.concatenate([forward, backward])
    _fit(tower, both, both[::8, :3])
    assert _best(tower, np.array([[3, 4], [5, 4]])) == [5, 3]


def test_only_the_text_tower_ranks_a_never_trained_item_by_its_text():
    """Items 5 and 6 read alike; whoever bought 4 went on with 5, and nobody ever bought 6."""
    walks, text = _ring(48, skip=6), _texts()
    text[6] = 0.9 * text[5] + 0.1 * text[6]
    probability = {}
    for name, tower in {"sasrec": _tower(), "text_tower": _tower(text)}.items():
        _fit(tower, walks, walks)
        ((_, scores),) = score_histories(tower, _histories(np.arange(5)[None]))
        probability[name] = scores[0].exp()
    assert set(probability["text_tower"].topk(2).indices.tolist()) == {5, 6}
    assert probability["text_tower"][6] > 10 * probability["sasrec"][6]


def test_the_sum_is_the_sum_of_log_probabilities_and_lists_are_sorted_by_it():
    towers = {"sasrec": _tower().eval(), "text_tower": _tower(_texts()).eval()}
    histories = _histories(_ring(5)[:, :-1])
    single = [next(score_histories(tower, histories))[1] for tower in towers.values()]
    torch.testing.assert_close(single[0].exp().sum(1), torch.ones(5))
    ((rows, best),) = rank_systems(towers, histories, 7, torch.Generator())
    assert rows == slice(0, 5)
    for system, scores in (("sasrec", single[0]), ("text_tower", single[1]), ("two_towers", single[0] + single[1])):
        expected = scores.double().sort(1, descending=True)
        torch.testing.assert_close(best[system].score, expected.values[:, :7], rtol=0, atol=2e-6)
        assert best[system].item.tolist() == expected.indices[:, :7].tolist()


def test_items_that_read_alike_are_listed_in_either_order():
    """They were listed by id, though two of the most frequent targets of a shop may be such items."""
    text = _texts()
    text[5] = text[4]
    towers = {"sasrec": _tower().eval(), "text_tower": _tower(text).eval()}
    ((_, best),) = rank_systems(towers, _histories(np.ones((200, 2), int)), NUM_ITEMS, torch.Generator().manual_seed(0))
    items = best["text_tower"].item
    first = (items == 5).int().argmax(1) < (items == 4).int().argmax(1)
    assert 70 < int(first.sum()) < 130
    assert len({tuple(row) for row in best["sasrec"].item.tolist()}) == 1


def test_validation_rows_choose_the_epoch_and_change_nothing_else():
    right, wrong = _ring(NUM_ITEMS), _ring(NUM_ITEMS)
    wrong[:, -1] = (wrong[:, -1] + 5) % NUM_ITEMS
    states, chosen = [], []
    for valid in (right, wrong, wrong[:3]):
        tower, config, seen, ndcg = _tower(), SMALL.model_copy(update={"epochs": 4}), [], []
        rows = ValidRows(_histories(valid[:, :-1]), valid[:, -1])
        for told in fit_tower(tower, _histories(_ring(48)), rows, config, rng=np.random.default_rng(0)):
            seen.append(_weights(tower))
            ndcg.append(told["ndcg@10"])
        assert torch.equal(_weights(tower), seen[np.argmax(ndcg)])
        states.append(torch.stack(seen))
        chosen.append(int(np.argmax(ndcg)))
    assert chosen[0] != chosen[1]
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def _weights(tower: Tower) -> torch.Tensor:
    return torch.cat([value.flatten() for value in tower.state_dict().values()])


def test_training_stops_when_validation_does_not_get_better():
    walks, config = _ring(24), SMALL.model_copy(update={"lr": 1e-9})
    assert len(_fit(_tower(config=config), walks, walks, config)) == 4


def test_padding_and_other_rows_change_no_score():
    tower = _tower().eval()
    mixed = HistoryItems(np.array([3, 1, 2, 4, 5]), np.array([0, 1, 5]))
    together = tower.log_probs(pad(mixed, np.arange(2)))
    alone = torch.cat([tower.log_probs(pad(mixed, np.array([row]))) for row in range(2)])
    torch.testing.assert_close(together, alone)


def test_the_state_of_a_place_does_not_see_what_comes_after():
    tower = _tower().eval()
    vectors = tower.vectors()
    whole = tower.states(torch.tensor([[1, 2, 3, 4]]), vectors)
    other = tower.states(torch.tensor([[1, 2, 7, 8]]), vectors)
    torch.testing.assert_close(whole[:, :2], other[:, :2])
    assert not torch.allclose(whole[:, 2:], other[:, 2:])


def _targets(windows: HistoryItems) -> list[int]:
    padded = pad(windows, np.arange(len(windows.start) - 1)).numpy()
    return sorted(padded[:, 1:][padded[:, 1:] != NO_ITEM].tolist())


def test_every_training_interaction_but_a_users_first_is_a_target_once():
    item = np.arange(20)
    chunks = [TrainingSequences(pa.array(["u", "v"]), item[:12], np.array([0, 1, 12]))]
    chunks += [TrainingSequences(pa.array(["w", "x"]), item[12:], np.array([0, 3, 8]))]
    windows = training_windows(chunks, 4)
    assert _targets(windows) == [*range(2, 12), 13, 14, *range(16, 20)]
    assert np.diff(windows.start).max() == 5
    assert sorted(np.split(windows.item, windows.start[1:-1])[0].tolist()) == [7, 8, 9, 10, 11]


def test_rows_that_repeat_each_other_bring_each_interaction_once():
    """Train rows of temporal splits hold the same interactions again and again."""
    items = build_id_index(pa.array(list("abcd")))
    rows = [("u", ["a"], "b"), ("u", ["a", "b"], "c"), ("u", ["a", "b", "c"], "d")]
    table = pa.table(
        {
            "user_id": [row[0] for row in rows],
            "split": ["train"] * 3,
            "history": [row[1] for row in rows],
            "target": [row[2] for row in rows],
        }
    )
    assert _targets(training_windows(training_sequences([table], items.find), 10)) == [1, 2, 3]


def test_a_saved_tower_gives_the_same_scores(tmp_path):
    for name, text in (("sasrec", None), ("text_tower", _texts())):
        tower, history = _tower(text).eval(), torch.tensor([[1, 2]])
        save_tower(tower, tmp_path, name)
        loaded = load_tower(tmp_path, name, SMALL, NUM_ITEMS, text)
        torch.testing.assert_close(loaded.log_probs(history), tower.log_probs(history), rtol=0, atol=0)


def test_a_catalogue_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match=r"towers: found 200001 items, .* at most 200000; set towers\.enabled=false"):
        Tower(SMALL, MAX_TOWER_ITEMS + 1, LENGTH)
