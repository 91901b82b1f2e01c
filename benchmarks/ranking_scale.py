"""Seconds and memory to build the sources of a million items, and the cost of one request afterwards.

Tables, parts, counting, search and arrays are those of the jobs; only the encoder costs nothing. Users walk over the items in
steps of random length, so that lists reach their full length. The requests' ranker is fitted on random numbers, but it has as
many trees as that of a run, and they are as deep.
"""

import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.harness import Bar, Measurement, main
from benchmarks.item_pass import DIM, FreeEmbed, pass_over, write_catalogue
from digr import artifacts, partitions
from digr.artifacts import Manifest, Store
from digr.config import Config, build_config
from digr.partitions import Part
from digr.ranking.lists import ListRanker
from digr.ranking.neighbours import HistoryItems
from digr.ranking.ranker import RankingExamples, fit_trees
from digr.ranking.systems import SERVED, feature_names
from digr.ranking.views import load_view
from digr.tables import conform
from jobs.build_neighbours import OUTPUTS, build_sources
from jobs.ranking.phrase_groups import EncodePhrases

BAR = Bar(full=1.0, quick=1.0, quick_reason="a thirtieth of the items: only the time of a request is near its limit")
"""Of the largest share of its limit that a figure takes."""
MAX_SECONDS, MAX_GIGABYTES, MAX_REQUEST_MS = 600.0, 8.0, 10.0
SIZES, SIZES_QUICK = (500_000, 1_000_000), (15_000, 30_000)
USERS_PER_ITEM, STEPS, USERS_PER_PART = 0.3, 10, 16_384
REQUESTS, HISTORY, K = 200, 10, 10


class SpreadEmbed(FreeEmbed):
    """The embedding job's worker with an encoder that costs nothing and gives every text a vector of its own."""

    def load_encoder(self) -> Any:
        """Give vectors drawn by the words of the texts."""
        return lambda texts: _near_centres(np.array([crc32(text.encode()) for text in texts], np.int64))


class FreePhrases(EncodePhrases):
    """The job's worker with an encoder that costs nothing."""

    def load_encoder(self) -> Any:
        """Give vectors drawn by each phrase's number."""
        return lambda texts: _near_centres(np.array([int(text.rsplit(" ", 1)[1]) for text in texts], np.int64))


def _near_centres(numbers: np.ndarray) -> np.ndarray:
    """Return unit vectors, each near one of 4,096 centres."""
    centres = np.random.default_rng(0).normal(size=(4096, DIM)).astype(np.float32)
    rng = np.random.default_rng(int(numbers[0]) if len(numbers) else 0)
    vectors = centres[numbers % len(centres)] + 0.3 * rng.normal(size=(len(numbers), DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_walks(store: Store, num_items: int) -> None:
    """Write histories: each user's walk with its last two items held out."""
    num_users = int(num_items * USERS_PER_ITEM)
    starts = [f"{number:09d}" if number else "" for number in range(0, num_users, USERS_PER_PART)]
    artifacts.begin(store, "histories")
    for number in range(len(starts)):
        first, count = number * USERS_PER_PART, min(USERS_PER_PART, num_users - number * USERS_PER_PART)
        rng = np.random.default_rng(number)
        walk = (rng.integers(0, num_items, (count, 1)) + rng.integers(1, 40, (count, STEPS)).cumsum(1)) % num_items
        table = pa.concat_tables([_rows(walk, first, place, split) for split, place in (("train", 7), ("valid", 8), ("test", 9))])
        order = np.arange(3 * count).reshape(3, count).T.ravel()
        with artifacts.open_part(partitions.part_uri(store, "histories", Part("user", number)), table.schema) as writer:
            writer.write_table(table.take(pa.array(order)))
    facts = {"split_rows": dict.fromkeys(("train", "valid", "test"), num_users), partitions.STARTS: starts}
    artifacts.commit(store, Manifest(name="histories", rows=3 * num_users, facts=facts))


def _rows(walk: np.ndarray, first: int, place: int, split: str) -> pa.Table:
    count = len(walk)
    users = [f"{user:09d}" for user in range(first, first + count)]
    ids = np.char.zfill(walk.astype(str), 9)
    history = pa.ListArray.from_arrays(pa.array(np.arange(count + 1) * place, pa.int32()), pa.array(ids[:, :place].ravel()))
    columns: dict[str, Any] = {"example_id": [f"{split}-{user}" for user in users], "user_id": users, "split": [split] * count}
    columns |= {"history": history, "target": ids[:, place], "target_timestamp": pa.nulls(count)}
    return conform("histories", pa.table(columns), "benchmark")


class Memory(threading.Thread):
    """Watches how much of the machine's memory is taken, until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before, self.most = psutil.virtual_memory().used, 0
        self.is_over = threading.Event()

    def run(self) -> None:
        """Look twenty times a second."""
        while not self.is_over.wait(0.05):
            self.most = max(self.most, psutil.virtual_memory().used - self.before)


def request_ms(config: Config, store: Store, num_items: int) -> float:
    """Return the median milliseconds from a history to its list, one request at a time on one core."""
    rng, grains = np.random.default_rng(0), len(config.ranking.interest_cosines)
    names = feature_names(SERVED, grains)
    features = rng.normal(size=(20_000, len(names))).astype(np.float32)
    is_target = np.arange(20_000) % 50 == 0
    ranker = fit_trees(
        RankingExamples(features, np.arange(0, 20_001, 50), is_target), names, config.ranking, seed=0, num_threads=1
    )
    with artifacts.fetch_files(store.uri("ranking_index")) as folder:
        view = load_view(Path(folder), "all", (SERVED.family,), grains)
        lists, seconds = ListRanker(view, {SERVED: ranker}), []
        for number in range(REQUESTS):
            walk = (rng.integers(0, num_items) + rng.integers(1, 40, HISTORY).cumsum()) % num_items
            begun = time.perf_counter()
            list(lists.rank(HistoryItems(walk, np.array([0, HISTORY])), None, K))
            if number >= REQUESTS // 4:  # the first ones map files
                seconds.append(time.perf_counter() - begun)
    return 1000 * float(np.median(seconds))


def measure(quick: bool) -> Measurement:
    """Build the sources of two catalogues, the second twice as large, and rank over the larger one."""
    from jobs.runtime.session import start_ray

    figures, total = dict[str, Any](), []
    with tempfile.TemporaryDirectory() as folder:
        tree = {"run": {"dir": folder}, "cluster": {"encode_workers": 2, "encode_threads": 1}, "ranking": {"ablations": []}}
        config = build_config(tree, where="benchmark")
        start_ray(config)
        for num_items in SIZES_QUICK if quick else SIZES:
            store = Store(f"{folder}/{num_items}")
            write_catalogue(store, num_items, 4096 if quick else config.data.items_per_part)
            pass_over(config, store, SpreadEmbed)
            write_walks(store, num_items)
            for name in OUTPUTS:
                artifacts.begin(store, name)
            memory, start = Memory(), time.monotonic()
            memory.start()
            build_sources(config, store, f"{store.root}/work", FreePhrases)
            total.append(time.monotonic() - start)
            memory.is_over.set()
            figures |= {
                f"seconds_at_{num_items}": round(total[-1], 1),
                f"gigabytes_at_{num_items}": round(memory.most / 1e9, 2),
                f"request_ms_at_{num_items}": round(request_ms(config, store, num_items), 2),
            }
            artifacts.remove(store.root)
    largest = (SIZES_QUICK if quick else SIZES)[-1]
    figures["growth"] = round(total[1] / total[0], 3)
    shares = {
        "seconds": total[1] / MAX_SECONDS,
        "gigabytes": figures[f"gigabytes_at_{largest}"] / MAX_GIGABYTES,
        "request": figures[f"request_ms_at_{largest}"] / MAX_REQUEST_MS,
    }
    figures["ratio_is"] = f"the largest share of {MAX_SECONDS:.0f} s, {MAX_GIGABYTES:.0f} GB or {MAX_REQUEST_MS:.0f} ms"
    return Measurement(figures, ratio=max(shares.values()))


if __name__ == "__main__":
    main(measure, BAR)
