"""Join the phrases of a family into canonical interests, new ones or in addition to an earlier run's, which do not change."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Int

from digr import artifacts
from digr.artifacts import Store
from digr.config.models import EncoderConfig
from digr.config.ranking import RankingConfig
from digr.interests.canonical import group_names, join_phrases, nearest_group
from digr.models.loading import weights_digest
from digr.ranking.building import FamilyFiles, group_means, read_vectors, unit

ENCODER = "embeddings.encoder"


def group_all(
    files: FamilyFiles, cosines: Sequence[float], *, max_phrases: int, seed: int, known: pa.Table | None = None
) -> tuple[pa.Table, list[Int[np.ndarray, " P"]]]:
    """Return the rows of `canonical_interests` of a family, and the group of each phrase at each grain.

    A group is named after its most frequent phrase; ties go to the first in alphabetical order. Groups of an earlier run keep
    their numbers and names.

    Args:
        cosines: least cosine of each grain.
        max_phrases: most new phrases that are linked, see `group_grain`.
        known: rows of an earlier run's `canonical_interests` with the same grains; `files` has all of their phrases.
    """
    phrases = artifacts.open_parts(files.phrases).to_table()
    texts = phrases["interest"].combine_chunks()
    groups, names = list[np.ndarray](), list[pa.Array]()
    for grain, cosine in enumerate(cosines):
        before = np.full(len(texts), -1) if known is None else _known_groups(texts, known, grain)
        group = group_grain(files, before, cosine, max_phrases=max_phrases, seed=seed).astype(np.int32)
        number, first = np.unique(group, return_index=True)
        assert len(number) == int(group.max(initial=-1)) + 1, "a phrase of the earlier run is missing"
        kept = texts.slice(0, 0) if known is None else group_names(known, grain)
        named = pa.concat_arrays([kept, texts.take(pa.array(first[len(kept) :]))])
        groups.append(group)
        names.append(named.take(pa.array(group)))
    ends = np.arange(len(texts) + 1, dtype=np.int32) * len(groups)
    across = pa.array(np.arange(len(texts) * len(groups)).reshape(len(groups), -1).T.ravel())
    lists = {"groups": pa.array(np.stack(groups, 1).ravel(), pa.int32()), "names": pa.concat_arrays(names).take(across)}
    nested = {name: pa.ListArray.from_arrays(pa.array(ends), values) for name, values in lists.items()}
    return pa.table({"interest": phrases["interest"], "num_items": phrases["num_items"], **nested}), groups


def group_grain(
    files: FamilyFiles, known: Int[np.ndarray, " P"], cosine: float, *, max_phrases: int, seed: int
) -> Int[np.ndarray, " P"]:
    """Return the group of each phrase at one grain.

    A new phrase joins the known group to whose phrases it has the highest mean cosine, if that is at least `cosine`. Of the
    other new phrases, the `max_phrases` most frequent are linked into new groups; each remaining one joins the group with the
    nearest mean. Only the means of groups and the vectors of phrases to link are in memory.

    Args:
        known: group of each phrase, which it keeps; -1 for a new phrase.
    """
    group, num_known = known.copy(), int(known.max(initial=-1)) + 1
    means = group_means(files, known) if num_known else np.zeros((0, 1), np.float32)
    rows, linked = list[np.ndarray](), list[np.ndarray]()
    for new, vectors in _ungrouped(files, known):
        fits = np.zeros(len(new), bool)
        if num_known:
            found, nearness = nearest_group(vectors, means)
            fits = nearness >= cosine
            group[new[fits]] = found[fits]
        chosen = np.flatnonzero(~fits)[: max_phrases - sum(map(len, rows))]
        rows.append(new[chosen])
        linked.append(vectors[chosen])
    if sum(map(len, rows)):
        group[np.concatenate(rows)] = num_known + join_phrases(np.concatenate(linked), cosine, seed=seed)
    if (group < 0).any():
        centroids = unit(group_means(files, group))
        for rest, vectors in _ungrouped(files, group.copy()):
            group[rest] = nearest_group(vectors, centroids)[0]
    return group


def _ungrouped(
    files: FamilyFiles, group: Int[np.ndarray, " P"]
) -> Iterator[tuple[Int[np.ndarray, " b"], Float32[np.ndarray, "b D"]]]:
    """Stream the phrases of group -1 with their vectors."""
    before = 0
    for vectors in read_vectors(files.vectors):
        here = np.flatnonzero(group[before : before + len(vectors)] < 0)
        if len(here):
            yield before + here, vectors[here]
        before += len(vectors)


def read_known(earlier: Store) -> pa.Table:
    """Read the canonical interests of an earlier run, for `group_all`."""
    return artifacts.read_table(earlier, "canonical_interests", ["interest", "groups", "names"])


def _known_groups(texts: pa.Array, known: pa.Table, grain: int) -> Int[np.ndarray, " P"]:
    at = pc.index_in(texts, value_set=known["interest"].combine_chunks())
    group = pc.list_element(known["groups"], grain).combine_chunks().take(at)
    return pc.fill_null(group, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def check_same_choices(earlier: Store, here: Store, chosen: RankingConfig, encoder: EncoderConfig) -> None:
    """Check that the canonical interests of an earlier run can be kept.

    Raises:
        ValueError: the earlier run has none, is this run, or has other grains or another encoder.
    """
    if earlier == here:
        raise ValueError(f"ranking.keep_from = {earlier.root!r} is this run itself; give an earlier run, or leave it empty")
    manifest = artifacts.require(earlier, "canonical_interests")
    there, told = manifest.config["ranking"], manifest.config["embeddings"]["encoder"]
    given = encoder.model_dump(mode="json")
    wanted: dict[str, Any] = {"ranking.interest_cosines": list(chosen.interest_cosines)}
    wanted |= {f"{ENCODER}.{key}": given[key] for key in ("max_tokens", "prompt")}
    wanted[f"digest of {ENCODER}"] = weights_digest(encoder, ENCODER)
    found = {"ranking.interest_cosines": there["interest_cosines"]}
    found |= {f"{ENCODER}.{key}": told[key] for key in ("max_tokens", "prompt")}
    found[f"digest of {ENCODER}"] = manifest.inputs[f"model {ENCODER}"]
    if other := [f"{key} is {value}, there {found[key]}" for key, value in wanted.items() if found[key] != value]:
        raise ValueError(
            f"ranking.keep_from = {earlier.root!r}: {'; '.join(other)}; canonical interests can be kept only with equal "
            f"settings: make them equal or leave ranking.keep_from empty"
        )
