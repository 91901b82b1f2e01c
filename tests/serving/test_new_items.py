"""Semantic IDs of items that come after the run."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from digr.config.interests import EmbeddingsConfig
from digr.data.texts import item_texts
from digr.serving.new_items import Extender, TakenCodes, new_vectors, sid_of_new_item
from digr.sids.extension import extend_sids
from digr.sids.fusion import fit_fusion
from digr.sids.item_vectors import item_vectors
from digr.sids.rkmeans import RKMeans
from digr.tables import table_spec

DIM, SIZES = 8, (4, 3)
NOTHING = np.zeros((0, 2), np.int32)


def _encode(texts: list[str]) -> np.ndarray:
    vectors = np.stack([np.random.default_rng(sum(text.encode())).normal(size=DIM) for text in texts]).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _extender(**more) -> Extender:
    rng = np.random.default_rng(0)
    books = tuple(torch.from_numpy(rng.normal(size=(size, DIM)).astype(np.float32)) for size in SIZES)
    quantiser = RKMeans(torch.zeros(DIM), torch.ones(DIM), books)
    fields = {"fusion": None, "embeddings": EmbeddingsConfig(), "disambiguation": "colliding", "seed": 0, "level_sizes": SIZES}
    return Extender(**({"quantiser": quantiser, "retired": np.zeros((0, len(SIZES)), np.int32)} | fields | more))


def _table(*titles: str) -> pa.Table:
    schema = table_spec("items").schema
    rows = [{name: title if name in ("item_id", "title") else None for name in schema.names} for title in titles]
    return pa.Table.from_pylist(rows, schema=schema)


def test_new_items_fill_a_prefix_without_ever_sharing_or_changing_a_semantic_id():
    extender, taken = _extender(), np.zeros((0, 2), np.int32)
    vector = _encode(["the same words"])[0]
    for _ in range(SIZES[-1]):
        sid = sid_of_new_item(extender, TakenCodes(taken), vector)
        assert sid.tolist() not in taken.tolist()
        taken = np.concatenate([taken, sid[None]])
    assert len(np.unique(taken[:, 0])) == 1  # all nearest codes are the same, so the last level was filled


def test_a_full_prefix_is_an_error_and_so_is_a_code_that_the_policy_does_not_know():
    vector = _encode(["the same words"])[0]
    first = sid_of_new_item(_extender(), TakenCodes(NOTHING), vector)[0]
    full = np.array([[first, code] for code in range(SIZES[-1])], np.int32)
    with pytest.raises(ValueError, match="1 new items find neither a free code nor suffix codes below their prefix"):
        sid_of_new_item(_extender(), TakenCodes(full), vector)
    with pytest.raises(ValueError, match=r"the policy knows no code for the new item's semantic ID .*run the pipeline again"):
        sid_of_new_item(_extender(disambiguation="all"), TakenCodes(NOTHING), vector)


def test_a_retired_semantic_id_is_not_given_again():
    vector = _encode(["the same words"])[0]
    first = sid_of_new_item(_extender(), TakenCodes(NOTHING), vector)
    assert sid_of_new_item(_extender(retired=first[None]), TakenCodes(NOTHING), vector).tolist() != first.tolist()


def test_the_vector_of_a_new_item_is_made_as_the_runs_are():
    table, interests = _table("lamp", "rope"), [["warm light", "evening"], []]
    expected = item_vectors(
        item_texts(table),
        ["warm light", "evening"],
        np.array([0, 0]),
        np.ones(2),
        np.ones(2, bool),
        encode=_encode,
        interests="trusted",
        interest_weight=EmbeddingsConfig().interest_weight,
    ).embedding
    np.testing.assert_array_equal(new_vectors(_extender(), table, interests, _encode), expected)
    texts = _encode([f"text {index}" for index in range(30)])
    fusion = fit_fusion(texts, {"image": np.random.default_rng(1).normal(size=(30, 4)).astype(np.float32)}, {"image": 0.3})
    fused = new_vectors(_extender(fusion=fusion), table, interests, _encode)
    np.testing.assert_array_equal(fused, fusion(expected, {"image": np.full((2, 4), np.nan, np.float32)}))


@pytest.mark.parametrize("disambiguation", ["colliding", "all", "none"])
def test_a_semantic_id_is_the_one_that_a_comparison_with_the_whole_catalogue_gives(disambiguation):
    """Brute force: few of the taken semantic IDs are looked at, and none of the others would change the result."""
    rng = np.random.default_rng(3)
    levels, extra = len(SIZES), 2  # two codes for the suffix
    for trial in range(60):
        codes = np.stack([rng.integers(0, size, 9) for size in SIZES], 1).astype(np.int32)
        codes = np.unique(codes, axis=0)
        suffix = np.where(rng.random(len(codes)) < 0.5, rng.integers(0, extra, len(codes)), -1).astype(np.int32)
        existing = np.column_stack([codes, suffix])
        extender = _extender(disambiguation=disambiguation, level_sizes=(*SIZES, 9), retired=np.zeros((0, levels + 1), np.int32))
        vector = _encode([f"text {trial}"])[0]
        whole = extend_sids(extender.quantiser, existing, vector[None], disambiguation=disambiguation).codes[0]
        wanted = np.pad(whole, (0, levels + 1 - len(whole)), constant_values=-1)
        taken = TakenCodes(existing[:4])
        for sid in existing[4:]:
            taken.add(sid)
        np.testing.assert_array_equal(sid_of_new_item(extender, taken, vector), wanted)


def test_a_draft_of_taken_codes_leaves_the_original_as_it_is():
    taken = TakenCodes(np.array([[1, 2, -1]], np.int32))
    draft = taken.draft()
    draft.add(np.array([1, 0, 4], np.int32))
    draft.add(np.array([9, 0, -1], np.int32))
    assert draft.below(1).tolist() == [[1, 2, -1], [1, 0, 4]]
    assert (taken.below(1).tolist(), taken.below(9).tolist()) == ([[1, 2, -1]], [])


@pytest.mark.parametrize(
    ("sid", "fits"), [([1, 2, 0], False), ([1, 2, -1], True), ([1, 0, -1], True), ([0, 2, 0], True), ([1, 1, -1], False)]
)
def test_no_semantic_id_begins_another(sid, fits):
    taken = TakenCodes(np.array([[1, 2, -1], [1, 1, 3]], np.int32))
    sid = np.array(sid, np.int32)
    if fits:
        taken.check(sid, (4, 3, 5))
    else:
        with pytest.raises(ValueError, match="begins another semantic ID, or another one begins it"):
            taken.check(sid, (4, 3, 5))


def test_only_semantic_ids_that_begin_like_the_new_one_matter():
    rng, extender = np.random.default_rng(0), _extender()
    taken = np.unique(rng.integers(0, SIZES, (5, 2)), axis=0).astype(np.int32)
    for number in range(20):
        vector = _encode([f"words {number}"])[0]
        every = extend_sids(extender.quantiser, taken, vector[None], seed=extender.seed).codes[0]
        assert sid_of_new_item(extender, TakenCodes(taken), vector).tolist() == every.tolist()
