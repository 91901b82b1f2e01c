"""What interests do for semantic IDs: text alone, text and all interests, text and trusted interests, three seeds each.

Reads `items`, `interests`, `interest_labels` and `histories` of the run that the environment variable DIGR_RUN names. It embeds
the items in the three ways (once: only the quantiser and the policy have seeds), fits the configured quantiser, and trains a
small policy on each result. The ratio is the mean gain in validation NDCG@10 of trusted interests over text alone, in standard
errors of that mean. A ratio under 2 shows nothing; three seeds can only show a large gain.
"""

import os
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from benchmarks.harness import Bar, Measurement, main
from digr import artifacts
from digr.artifacts import Store
from digr.config import build_config
from digr.config.models import EncoderConfig
from digr.data.ids import build_id_index
from digr.data.texts import item_texts
from digr.data.transitions import training_sequences
from digr.evaluation.sid_probe import validation_ndcg
from digr.models.encoders import load_encoder
from digr.sids.assignment import assign_sids
from digr.sids.diagnostics import cointeraction_shares, describe_sids
from digr.sids.fitting import fit_quantiser
from digr.sids.item_vectors import item_vectors
from digr.tables import flat_interests

BAR = Bar(
    full=2.0,
    quick=0.5,
    better="at_least",
    quick_reason="one seed has no standard error: the ratio is NDCG@10 with trusted interests over that without, after one epoch",
)
SMALL = {"policy": {"hidden_dim": 64, "num_layers": 2}, "sft": {"epochs": 8, "eval_every_epochs": 2, "max_valid_examples": 2000}}
SHOWN = ("raw_collision_rate", "reconstruction_r2", "neighbour_prefix_share", "cointeraction_prefix_share")


def embed(store: Store, max_tokens: int) -> tuple[pa.Array, dict[str, np.ndarray]]:
    """Return the item ids, and their vectors in the three ways."""
    items = artifacts.read_table(store, "items").combine_chunks()
    # tables about items have the same rows in the same order
    interests, labels = (
        flat_interests(artifacts.read_table(store, name, owner=["item"])) for name in ("interests", "interest_labels")
    )
    encoder, cache = load_encoder(EncoderConfig(max_tokens=max_tokens)), dict[tuple, np.ndarray]()

    def encode(texts: list[str]) -> np.ndarray:
        key = (len(texts), hash(tuple(texts)))
        if key not in cache:
            cache[key] = encoder(texts)
        return cache[key]

    confidence = np.asarray(interests["confidence"].fill_null(1.0))
    trusted = np.asarray(labels["label"]) == 1
    phrases, texts = interests["interest"].to_pylist(), item_texts(items)
    vectors = {
        mode: item_vectors(
            texts,
            phrases,
            np.asarray(interests["row"]),
            confidence,
            trusted,
            encode=encode,
            interests=mode,
            interest_weight=0.5,
        ).embedding
        for mode in ("none", "all", "trusted")
    }
    return items["item_id"].combine_chunks(), vectors


def measure(quick: bool) -> Measurement:
    """Measure three ways with three seeds; the quick form stops after one epoch with one seed."""
    torch.set_num_threads(1)
    run = os.environ.get("DIGR_RUN")
    if not run:
        raise ValueError("set DIGR_RUN to the folder of a run with items, interests, interest_labels and histories")
    store = Store(run)
    item_ids, vectors = embed(store, 16 if quick else 128)
    histories = artifacts.read_table(store, "histories")
    histories = histories.filter(pc.is_in(histories["split"], pa.array(["train", "valid"])))
    figures: dict[str, object] = {}
    by_mode = {}
    for mode, rows in vectors.items():
        scores, facts = [], []
        for seed in range(1 if quick else 3):
            small = SMALL | ({"sft": {"epochs": 1, "max_valid_examples": 200}} if quick else {})
            config = build_config({"run": {"dir": run, "seed": seed}, **small}, where="benchmark")
            quantiser = fit_quantiser(rows, config.sids, seed)
            assigned = assign_sids(quantiser, partial(iter, [rows]), seed=seed)
            found = describe_sids(quantiser, assigned, rows, np.arange(len(rows)), seed=seed)
            levels = len(quantiser.codebooks)
            sequences = training_sequences(histories.to_batches(), build_id_index(item_ids).find)
            shares, _ = cointeraction_shares(sequences, assigned.codes[:, :levels])
            facts.append(found | {"cointeraction_prefix_share": shares})
            scores.append(validation_ndcg(item_ids, assigned.codes, assigned.level_sizes, histories, config))
            print(mode, seed, scores[-1], facts[-1], flush=True)
        by_mode[mode] = np.array(scores)
        figures[f"{mode}: valid ndcg@10"] = ", ".join(f"{score:.4f}" for score in scores)
        for name in SHOWN:
            values = [fact[name][0] if isinstance(fact[name], list) else fact[name] for fact in facts]
            figures[f"{mode}: {name}"] = round(float(np.mean(values)), 4)
    ratio = float(by_mode["trusted"].mean() / by_mode["none"].mean())
    for mode in ("all", "trusted"):
        gains = by_mode[mode] - by_mode["none"]
        text = f"{gains.mean():+.4f}"
        if not quick:
            error = float(gains.std(ddof=1) / np.sqrt(len(gains)))
            text, ratio = f"{text}, standard error {error:.4f}", float(gains.mean()) / error
        figures[f"{mode} over none: gain in valid ndcg@10"] = text
    figures["ratio_is"] = "trusted over none" if quick else "gain of trusted over none in standard errors"
    return Measurement(figures, ratio=ratio)


if __name__ == "__main__":
    main(measure, BAR)
