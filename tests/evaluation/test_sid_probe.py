"""The probe's score rises when semantic IDs let the policy learn which item follows which."""

from itertools import product

import numpy as np
import pyarrow as pa

from digr.config import build_config
from digr.evaluation.sid_probe import validation_ndcg

CONFIG = build_config(
    {
        "run": {"dir": "runs/none"},
        "policy": {"hidden_dim": 32, "num_layers": 1, "num_heads": 2, "dropout": 0.0},
        "sft": {"epochs": 30, "eval_every_epochs": 30, "lr": 5e-3, "batch_tokens": 512, "valid_beam_width": 10},
    },
    where="test",
)


def test_a_small_policy_finds_the_next_item_of_a_ring_by_its_sid():
    ids = [f"i{index:02d}" for index in range(25)]
    codes = np.array(list(product(range(5), range(5))), np.int32)
    starts = np.arange(100) % 25
    rows = {
        "example_id": [f"e{row}" for row in range(125)],
        "user_id": [f"u{row}" for row in range(125)],
        "split": ["train"] * 100 + ["valid"] * 25,
        "history": [[ids[start], ids[(start + 1) % 25]] for start in [*starts, *range(25)]],
        "target": [ids[(start + 2) % 25] for start in [*starts, *range(25)]],
    }
    score = validation_ndcg(pa.array(ids), codes, (5, 5), pa.table(rows), CONFIG)
    assert score > 0.8  # a random order of 25 items gives about .18
    untrained = CONFIG.model_copy(update={"sft": CONFIG.sft.model_copy(update={"epochs": 1, "lr": 1e-9})})
    assert validation_ndcg(pa.array(ids), codes, (5, 5), pa.table(rows), untrained) < 0.5
