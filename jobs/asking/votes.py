"""Probabilities from labelers other than the classifier, in the label job's scratch folder, in the parts of `interests`."""

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.interests.ledger import write_part
from digr.partitions import Part, parts_of, read_part
from digr.rewards.behavioural import behavioural_table
from digr.rewards.judge import JUDGED
from digr.tables import Owner, flat_interests

_KEY = ("owner_id", "interest")
"""Columns that identify the interest of a verdict within a part."""


def read_votes(labeler: Literal["judge", "behavioural"], store: Store, part: Part, work: str) -> Float[np.ndarray, " P"]:
    """Return the probability that a labeler gave each interest of a part, in order; NaN if it gave none."""
    if labeler == "behavioural":
        found = artifacts.open_parts(_behavioural_folder(work, part)).to_table()["probability"]
        return np.asarray(found.fill_null(np.nan), np.float64)
    uri = f"{judge_folder(work, part.owner)}/{artifacts.part_name(part.number)}"
    given = artifacts.open_parts(uri, JUDGED).to_table(columns=[*_KEY, "probability"])
    given = given.filter(given["probability"].is_valid())
    place = pc.index_in(_joined(flat_interests(read_part(store, "interests", part))), _joined(given))
    return np.asarray(pc.fill_null(given["probability"].take(place), np.nan), np.float64)


def judge_folder(work: str, owner: Owner) -> str:
    """Return the address of the judge's verdicts about items or users: a file for each part with verdicts."""
    return f"{work}/judge/{owner}"


def _behavioural_folder(work: str, part: Part) -> str:
    return f"{work}/behavioural/{part.owner}/{part.number}"


def _joined(rows: pa.Table) -> pa.Array:
    return pc.binary_join_element_wise(*(pc.cast(rows[name], pa.string()) for name in _KEY), "\x1f").combine_chunks()


def count_transitions(config: Config, store: Store, work: str) -> None:
    """Write the behavioural labeler's probability of every interest, in one worker."""
    import ray

    ray.get(ray.remote(_count).remote(store, config.labels.min_lift, work, config.interests.owners))


def _count(store: Store, min_lift: float, work: str, owners: Sequence[Owner]) -> None:
    phrases = behavioural_table(store, min_lift)
    for owner in owners:
        parts = parts_of(store, owner)
        named = [flat_interests(read_part(store, "interests", part))["interest"].combine_chunks() for part in parts]
        # in one look-up, because each would hash all phrases again
        places = pc.index_in(pa.chunked_array(named, pa.string()), phrases["interest"].combine_chunks())
        votes = phrases["probability"].combine_chunks().take(places)
        ends = np.cumsum([0, *map(len, named)]).tolist()
        for part, (start, end) in zip(parts, itertools.pairwise(ends), strict=True):
            write_part(_behavioural_folder(work, part), "part-0", pa.table({"probability": votes[start:end]}))
