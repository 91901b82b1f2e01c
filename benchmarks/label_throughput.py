"""Rows per second of the label job against the same classifier in a plain loop of one process.

Both label the interests of the embedded shop's items, with the same number of PyTorch threads. The job also reads and
writes Parquet, starts its worker and rates every item; the loop has its model and rows in memory, and the same batch size.
The job runs twice; the first run, which includes the start of Ray, is not counted.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.harness import Bar, Measurement, main
from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import build_config
from digr.config.models import PairEncoderConfig
from digr.data.texts import item_texts
from digr.models.encoders import load_encoder
from digr.rewards.classifier import InterestClassifier, MatchHead, load_classifier, save_classifier
from digr.rewards.labeling import MAX_TEXT_CHARS
from digr.tables import flat_interests, nest_interests

BAR = Bar(
    full=0.5,
    quick=0.2,
    better="at_least",
    quick_reason="the loop takes seconds, and the start of Ray and of the job's worker about as long",
)
NUM_ITEMS, NUM_ITEMS_QUICK, INTERESTS = 4000, 300, 4


def _make_run(store: Store, num_items: int) -> None:
    """Write items, four interests of each, and an untrained classifier."""
    rng = np.random.default_rng(0)
    words = np.array(
        [f"{a}{b}" for a in ("oak", "iron", "blue", "quick", "garden", "river") for b in ("work", "tool", "care", "trip")]
    )
    ids = [f"{index:06d}" for index in range(num_items)]
    titles = [" ".join(rng.choice(words, 8)) for _ in ids]
    descriptions = [" ".join(rng.choice(words, 60)) for _ in ids]
    fields = {
        "interest": [" ".join(rng.choice(words, 3)) for _ in range(num_items * INTERESTS)],
        "miners": [["m"]] * num_items * INTERESTS,
        "consensus": np.ones(num_items * INTERESTS),
    }
    owners = {"owner": ["item"] * num_items, "owner_id": ids}
    interests = nest_interests("interests", owners, np.repeat(np.arange(num_items), INTERESTS), fields)
    tables = {"items": pa.table({"item_id": ids, "title": titles, "description": descriptions}), "interests": interests}
    for name, table in tables.items():
        artifacts.write_table(store, name, table)
        artifacts.commit(store, Manifest(name=name, rows=len(table)))
    artifacts.begin(store, "classifier")
    heads = torch.nn.ModuleList([MatchHead(384) for _ in range(4)])
    encode = load_encoder(PairEncoderConfig())
    save_classifier(Path(store.uri("classifier")), InterestClassifier(encode, heads), PairEncoderConfig())
    artifacts.commit(store, Manifest(name="classifier"))


def measure(quick: bool) -> Measurement:
    """Run the label job twice, then the loop."""
    from jobs.label_interests import BATCH_OWNERS, run
    from jobs.runtime.session import Options

    with tempfile.TemporaryDirectory() as folder:
        store, num_items = Store(folder), NUM_ITEMS_QUICK if quick else NUM_ITEMS
        _make_run(store, num_items)
        config = build_config({"run": {"dir": folder}}, where="benchmark")
        summary = [run(config, Options(force="all")) for _ in range(1 if quick else 2)][-1]
        torch.set_num_threads(config.cluster.encode_threads)
        batch_size = config.cluster.encode_batch_size
        classify = load_classifier(Path(store.uri("classifier")), lambda base: load_encoder(base, "cpu", batch_size))
        interests = flat_interests(artifacts.read_table(store, "interests"))
        own_texts = item_texts(artifacts.read_table(store, "items"), MAX_TEXT_CHARS)
        texts = [own_texts[row] for row in interests["row"].to_pylist()]
        phrases, owners = interests["interest"].to_pylist(), interests["owner_id"].to_pylist()
        start = time.monotonic()
        step = BATCH_OWNERS * INTERESTS
        for place in range(0, len(phrases), step):
            rows = slice(place, place + step)
            classify(phrases[rows], texts[rows], owners[rows])
        loop = time.monotonic() - start
    figures = {
        "rows": len(phrases),
        "job_seconds": round(summary["seconds"], 2),
        "loop_seconds": round(loop, 2),
        "job_rows_per_second": round(len(phrases) / summary["seconds"], 1),
        "loop_rows_per_second": round(len(phrases) / loop, 1),
    }
    return Measurement(figures, ratio=loop / summary["seconds"])


if __name__ == "__main__":
    main(measure, BAR)
