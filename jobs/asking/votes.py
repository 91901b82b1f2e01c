"""What labelers other than the classifier say, in the label job's scratch folder."""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.rewards.behavioural import behavioural_table
from digr.rewards.judge import JUDGED, KEY
from digr.rewards.labeling import votes_of


def read_votes(labeler: Literal["judge", "behavioural"], interests: pa.Table, work: str) -> np.ndarray:
    """Return the probability that a labeler gave each interest, NaN where it gave none."""
    uri = f"{work}/{labeler}"
    if labeler == "behavioural":
        return votes_of(interests, artifacts.open_parts(uri), ["interest"], "interest")
    return votes_of(interests, artifacts.open_parts(uri, JUDGED), KEY, "owner_id")


def count_transitions(config: Config, store: Store, work: str) -> None:
    """Write what the behavioural labeler says of every phrase, from a worker."""
    import ray

    ray.get(ray.remote(_count).remote(store, config.labels.min_lift, f"{work}/behavioural"))


def _count(store: Store, min_lift: float, uri: str) -> None:
    filesystem, path = artifacts.filesystem_of(uri)
    filesystem.create_dir(path, recursive=True)
    pq.write_table(behavioural_table(store, min_lift), f"{path}/part-0.parquet", filesystem=filesystem)
