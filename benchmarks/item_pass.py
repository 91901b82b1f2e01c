"""Seconds to label and then embed all items, as the catalogue grows to twice its size.

The workers, tables and parts are those of the jobs; only the models cost nothing: a classifier that gives every interest the
same label, and an encoder that gives every text one of a few vectors. So this is the time to read, align and write rows.
Ray and its first workers start before the clock.
"""

import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.harness import Bar, Measurement, main
from digr import artifacts, partitions
from digr.artifacts import Manifest, Store
from digr.config import Config, build_config
from digr.partitions import Part, parts_of
from digr.tables import conform, nest_interests
from jobs.embed_items import Embed
from jobs.label_interests import Label

BAR = Bar(full=2.2, quick=3.0, quick_reason="a part more or less, and what a worker's start costs, is a large share")
"""Of the seconds for twice the items, over those for the items."""
MAX_SECONDS = 60.0
SIZES, SIZES_QUICK = (500_000, 1_000_000), (33_000, 66_000)
INTERESTS, DIM, WORDS = 4, 64, 24


class FreeLabel(Label):
    """The label job's worker with a classifier that costs nothing."""

    def load_classifier(self) -> Any:
        """Trust all interests alike."""
        return lambda interests, texts, owner_ids: np.full(len(interests), 0.7)


class FreeEmbed(Embed):
    """The embedding job's worker with an encoder that costs nothing."""

    def load_encoder(self) -> Any:
        """Give vectors by the lengths of texts."""
        vectors = np.random.default_rng(0).normal(size=(16, DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return lambda texts: vectors[np.array([len(text) for text in texts], np.int64) % 16]


def write_catalogue(store: Store, num_items: int, items_per_part: int) -> None:
    """Write items with a title and a description, and four interests of each, drawn from 40,000 phrases."""
    starts = [f"{number:09d}" if number else "" for number in range(0, num_items, items_per_part)]
    for name in ("items", "interests"):
        artifacts.begin(store, name)
    for number in range(len(starts)):
        first = number * items_per_part
        for name, table in _part_of_catalogue(first, min(items_per_part, num_items - first)):
            uri = partitions.part_uri(store, name, Part("item", number))
            with artifacts.open_part(uri, table.schema) as writer:
                writer.write_table(table)
    for name in ("items", "interests"):
        artifacts.commit(store, Manifest(name=name, rows=num_items, facts={partitions.STARTS: starts}))


def _part_of_catalogue(first: int, count: int) -> Iterator[tuple[str, pa.Table]]:
    rng = np.random.default_rng(first)
    ids = pa.array([f"{item:09d}" for item in range(first, first + count)])
    words = np.array([f"word{number}" for number in range(2000)])
    texts = pa.array([" ".join(row) for row in words[rng.integers(0, len(words), (count, WORDS))].tolist()])
    yield "items", conform("items", pa.table({"item_id": ids, "title": ids, "description": texts}), "benchmark")
    named = rng.integers(0, 40_000, count * INTERESTS)
    fields = {
        "interest": [f"weekend work of kind {number}" for number in named.tolist()],
        "confidence": rng.random(len(named)),
        "miners": [["m"]] * len(named),
        "consensus": np.ones(len(named)),
    }
    owners = {"owner": pa.array(["item"] * count), "owner_id": ids}
    yield "interests", nest_interests("interests", owners, np.repeat(np.arange(count), INTERESTS), fields)


def pass_over(config: Config, store: Store, embed: type[Embed] = FreeEmbed) -> dict[str, float]:
    """Label all interests and embed all items; returns the seconds of each."""
    from jobs.runtime.datasets import map_parts

    seconds, parts = {}, parts_of(store, "item")
    for name, worker, arguments in (("interest_labels", FreeLabel, ("", None)), ("item_embeddings", embed, ())):
        artifacts.begin(store, name)
        start = time.monotonic()
        rows = map_parts(config, store, worker, parts, [name], arguments=arguments)[name]
        seconds[name] = time.monotonic() - start
        artifacts.commit(store, Manifest(name=name, rows=rows))
    return seconds


def measure(quick: bool) -> Measurement:
    """Pass over two catalogues, the second twice as large."""
    from jobs.runtime.session import start_ray

    figures, total = dict[str, Any](), []
    with tempfile.TemporaryDirectory() as folder:
        config = build_config({"run": {"dir": folder}, "cluster": {"encode_workers": 2, "encode_threads": 1}}, where="benchmark")
        start_ray(config)
        warm = Store(f"{folder}/warm")
        write_catalogue(warm, 4096, 128)  # enough parts for both processes, or one would import while the clock runs
        pass_over(config, warm)
        for num_items in SIZES_QUICK if quick else SIZES:
            store = Store(f"{folder}/{num_items}")
            write_catalogue(store, num_items, 4096 if quick else config.data.items_per_part)
            seconds = pass_over(config, store)
            total.append(sum(seconds.values()))
            figures |= {f"{name}_seconds_at_{num_items}": round(spent, 2) for name, spent in seconds.items()}
            figures |= {
                f"seconds_at_{num_items}": round(total[-1], 2),
                f"items_per_second_at_{num_items}": round(num_items / total[-1]),
            }
            artifacts.remove(store.root)
    growth = total[1] / total[0]
    figures["growth"] = round(growth, 3)
    if quick:
        return Measurement(figures, ratio=growth)
    figures["ratio_is"] = f"growth or, if larger, seconds at {SIZES[1]} over {MAX_SECONDS:.0f} s, times the bar"
    return Measurement(figures, ratio=max(growth, BAR.full * total[1] / MAX_SECONDS))


if __name__ == "__main__":
    main(measure, BAR)
