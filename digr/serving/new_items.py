"""Semantic IDs for items that are added after the run, by its frozen quantiser; those of other items do not change."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int32

from digr import artifacts
from digr.artifacts import Store
from digr.config.interests import EmbeddingsConfig
from digr.data.texts import item_texts
from digr.models.encoders import Encode
from digr.sids.assignment import Disambiguation, nearest_codes
from digr.sids.building import RETIRED
from digr.sids.extension import extend_sids
from digr.sids.fitting import Quantiser, load_quantiser
from digr.sids.fusion import Fusion, load_fusion
from digr.sids.item_vectors import item_vectors
from digr.sids.trie import check_codes, codes_of


class Extender(NamedTuple):
    """The quantiser of a run's semantic IDs, and its inputs."""

    quantiser: Quantiser
    fusion: Fusion | None
    embeddings: EmbeddingsConfig
    disambiguation: Disambiguation
    seed: int
    level_sizes: tuple[int, ...]
    """Number of codes per level that the policy knows, including the suffix level."""
    retired: Int32[np.ndarray, "R L"]
    """Retired semantic IDs, which are never assigned again."""


def load_extender(store: Store) -> Extender:
    """Load what a run's semantic IDs were made with.

    Raises:
        ValueError: an artifact is missing; the message names the job that makes it.
    """
    sids = artifacts.require(store, "item_sids")
    level_sizes = tuple(sids.facts["level_sizes"])
    with artifacts.local_files(store, "quantiser") as folder:
        quantiser, fusion = load_quantiser(folder), load_fusion(folder)
        retired = pq.read_table(folder / RETIRED) if (folder / RETIRED).is_file() else None
    return Extender(
        quantiser=quantiser,
        fusion=fusion,
        embeddings=EmbeddingsConfig.model_validate(artifacts.require(store, "item_embeddings").config["embeddings"]),
        disambiguation=sids.config["sids"]["disambiguation"],
        seed=sids.seed,
        level_sizes=level_sizes,
        retired=codes_of(retired, len(level_sizes)) if retired is not None else np.zeros((0, len(level_sizes)), np.int32),
    )


def new_vectors(
    extender: Extender, items: pa.Table, interests: Sequence[Sequence[str]], encode: Encode
) -> Float[np.ndarray, "M D"]:
    """Make the vectors of new items in the same way as the run's, from text and trusted interests of confidence 1.

    Args:
        items: M rows of `items`.
        interests: trusted interests of each item.
    """
    phrases = [phrase for own in interests for phrase in own]
    vectors = item_vectors(
        item_texts(items),
        phrases,
        np.repeat(np.arange(len(interests)), [len(own) for own in interests]),
        np.ones(len(phrases)),
        np.ones(len(phrases), bool),
        encode=encode,
        interests=extender.embeddings.interests,
        interest_weight=extender.embeddings.interest_weight,
    ).embedding
    return vectors if extender.fusion is None else extender.fusion(vectors)


class TakenCodes:
    """Semantic IDs of a catalogue by their first code, so that a new one is compared with few of them."""

    def __init__(self, codes: Int32[np.ndarray, "N L"]) -> None:
        """Index the semantic IDs of N items, -1 after the end of a shorter one."""
        self._codes = codes
        self._order = np.argsort(codes[:, 0], kind="stable").astype(np.int32)
        self._starts = np.searchsorted(codes[self._order, 0], np.arange(int(codes[:, 0].max(initial=-1)) + 2))
        self._added: dict[int, list[Int32[np.ndarray, " L"]]] = {}

    def draft(self) -> "TakenCodes":
        """Return a copy to which others can be added without a change of this one; the index is shared."""
        copy = TakenCodes.__new__(TakenCodes)
        copy._codes, copy._order, copy._starts = self._codes, self._order, self._starts
        copy._added = {first: list(rows) for first, rows in self._added.items()}
        return copy

    def add(self, sid: Int32[np.ndarray, " L"]) -> None:
        """Add the semantic ID of one more item."""
        self._added.setdefault(int(sid[0]), []).append(sid)

    def below(self, first: int) -> Int32[np.ndarray, "M L"]:
        """Return the semantic IDs that begin with a code."""
        added = self._added.get(first, [])
        rows = self._order[slice(*self._starts[first : first + 2])] if first + 1 < len(self._starts) else self._order[:0]
        return np.concatenate([self._codes[rows], np.array(added, np.int32).reshape(-1, self._codes.shape[1])])

    def check(self, sid: Int32[np.ndarray, " L"], level_sizes: Sequence[int]) -> None:
        """Refuse a semantic ID that cannot stand beside the others.

        Raises:
            ValueError: a code is outside its level, or one semantic ID is the beginning of the other.
        """
        check_codes(sid[None], 1, level_sizes)
        others = self.below(int(sid[0]))
        ends = (others == -1) != (sid == -1)
        if (((others == sid) | (others == -1) | (sid == -1)).all(1) & ends.any(1)).any():
            raise ValueError(f"item_sids: {sid.tolist()} begins another semantic ID, or another one begins it")


def sid_of_new_item(extender: Extender, taken: TakenCodes, vector: Float[np.ndarray, " D"]) -> Int32[np.ndarray, " L"]:
    """Assign a semantic ID to one new item.

    Raises:
        ValueError: no free code is left that the policy knows.
    """
    levels, books = len(extender.level_sizes), len(extender.quantiser.codebooks)
    # an item never leaves its nearest prefix, which is all codes but the last; with one codebook that is the whole catalogue
    firsts = nearest_codes(extender.quantiser, vector[None])[0][0, :1].tolist() if books > 1 else range(extender.level_sizes[0])
    existing = np.concatenate([*(taken.below(first) for first in firsts), extender.retired])
    added = extend_sids(extender.quantiser, existing, vector[None], disambiguation=extender.disambiguation, seed=extender.seed)
    if added.codes.shape[1] > levels or (added.codes[0] >= extender.level_sizes[: added.codes.shape[1]]).any():
        raise ValueError(
            f"item_sids: the policy knows no code for the new item's semantic ID {added.codes[0].tolist()} (level sizes "
            f"{list(extender.level_sizes)}); run the pipeline again with the item in the catalogue"
        )
    return np.pad(added.codes[0], (0, levels - added.codes.shape[1]), constant_values=-1)
