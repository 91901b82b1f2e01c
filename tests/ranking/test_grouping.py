"""Phrases become canonical interests, and those of an earlier run stay as they are."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config.models import EncoderConfig
from digr.config.ranking import RankingConfig
from digr.models.loading import weights_digest
from digr.ranking import building
from digr.ranking.building import FamilyFiles
from digr.ranking.grouping import check_same_choices, group_all
from digr.ranking.phrases import PHRASES
from digr.tables import conform

VECTORS = {
    "trout": [1, 0, 0],
    "fly fishing": [0.8, 0.6, 0],
    "bread": [0, 0, 1],
    "river trout": [0.9, 0.19**0.5, 0],
    "sourdough": [0, 0.6, 0.8],
    "opera": [0, 1, 0],
}


def _write(uri: str, table: pa.Table) -> None:
    with artifacts.open_part(uri, table.schema) as writer:
        writer.write_table(table)


def _files(
    folder: Path, num_items: Mapping[str, int], vectors: Mapping[str, list[float]] = VECTORS, known: pa.Table | None = None
) -> FamilyFiles:
    """Write a family in which so many items have each phrase, with its vectors in two files."""
    files, item = FamilyFiles(str(folder)), 0
    rows = [(item := item + 1, phrase, 1.0) for phrase, count in num_items.items() for _ in range(count)]
    columns = {name: [row[place] for row in rows] for place, name in enumerate(PHRASES.names)}
    _write(f"{files.rows}/{artifacts.part_name(0)}", pa.table(columns).cast(PHRASES))
    building.write_phrases(files, known)
    found = artifacts.open_parts(files.phrases).to_table()["interest"].to_pylist()
    half = (len(found) + 1) // 2
    for number, names in enumerate((found[:half], found[half:])):
        table = pa.table({"vector": pa.array([vectors[name] for name in names], pa.list_(pa.float32()))})
        _write(f"{files.vectors}/{artifacts.part_name(number)}", table)
    return files


def _group(folder: Path, num_items: Mapping[str, int], cosines=(0.7, 0.99), *, vectors=VECTORS, known=None, max_phrases=100):
    files = _files(folder, num_items, vectors, known)
    table, groups = group_all(files, cosines, max_phrases=max_phrases, seed=0, known=known)
    assert table["groups"].to_pylist() == np.stack(groups, 1).tolist()
    return conform("canonical_interests", table, "test")


def _by_phrase(table: pa.Table, column: str) -> dict:
    return dict(zip(table["interest"].to_pylist(), table[column].to_pylist(), strict=True))


def test_phrases_are_counted_over_all_items_and_the_most_usual_names_a_group(tmp_path):
    table = _group(tmp_path, {"trout": 2, "fly fishing": 1, "bread": 1})
    assert table.select(["interest", "num_items", "names"]).to_pylist() == [
        {"interest": "trout", "num_items": 2, "names": ["trout", "trout"]},
        {"interest": "bread", "num_items": 1, "names": ["bread", "bread"]},
        {"interest": "fly fishing", "num_items": 1, "names": ["trout", "fly fishing"]},
    ]
    fine, coarse = (len(set(groups)) for groups in zip(*table["groups"].to_pylist(), strict=True))
    assert (fine, coarse) == (2, 3)


def test_phrases_beyond_the_linked_ones_join_the_nearest_group(tmp_path):
    found = _by_phrase(_group(tmp_path, {"trout": 3, "bread": 2, "fly fishing": 1}, (0.99,), max_phrases=2), "groups")
    assert found["fly fishing"] == found["trout"] != found["bread"]


def test_an_earlier_run_keeps_its_groups_and_new_phrases_join_them_or_make_further_ones(tmp_path):
    known = _group(tmp_path / "first", {"trout": 3, "fly fishing": 2, "bread": 1})
    added = {"river trout": 9, "sourdough": 2, "opera": 1}
    table = _group(tmp_path / "second", {"trout": 1, "fly fishing": 1} | added, known=known)
    before, groups, names = _by_phrase(known, "groups"), _by_phrase(table, "groups"), _by_phrase(table, "names")
    assert {phrase: groups[phrase] for phrase in before} == before
    (trout, alone), (bread, loaf) = before["trout"], before["bread"]
    assert {trout, bread} == {0, 1} and {alone, loaf, before["fly fishing"][1]} == {0, 1, 2}
    # mean cosines: river trout .94 with the fishing, sourdough .8 with bread, opera .3 and 0; at .99 all are alone
    assert [groups[phrase][0] for phrase in added] == [trout, bread, 2]
    assert sorted(groups[phrase][1] for phrase in added) == [3, 4, 5]
    assert names == {
        "trout": ["trout", "trout"],
        "fly fishing": ["trout", "fly fishing"],
        "bread": ["bread", "bread"],
        "river trout": ["trout", "river trout"],
        "sourdough": ["bread", "sourdough"],
        "opera": ["opera", "opera"],
    }
    assert _by_phrase(table, "num_items") == {"trout": 1, "fly fishing": 1, "bread": 0} | added  # bread is retired


def test_new_phrases_that_fit_nowhere_are_linked_with_each_other(tmp_path):
    known = _group(tmp_path / "first", {"bread": 1}, (0.7,))
    table = _group(tmp_path / "second", {"fly fishing": 1, "trout": 2}, (0.7,), known=known)
    assert _by_phrase(table, "groups") == {"bread": [0], "trout": [1], "fly fishing": [1]}
    assert _by_phrase(table, "names") == {"bread": ["bread"], "trout": ["trout"], "fly fishing": ["trout"]}


def test_new_phrases_beyond_the_linked_ones_join_the_nearest_group_old_or_new(tmp_path):
    known = _group(tmp_path / "first", {"bread": 1}, (0.99,))
    found = _by_phrase(
        _group(tmp_path / "second", {"trout": 3, "river trout": 2, "sourdough": 1}, (0.99,), known=known, max_phrases=1), "groups"
    )
    assert found == {"bread": [0], "trout": [1], "river trout": [1], "sourdough": [0]}


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_added_or_goes_the_groups_of_known_phrases_stay(tmp_path, seed):
    rng, cosines = np.random.default_rng(seed), (0.8, 0.5)
    drawn = rng.normal(size=(60, 4)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    vectors = {f"p{number:02d}": row.tolist() for number, row in enumerate(drawn)}
    counts = {phrase: int(count) for phrase, count in zip(vectors, rng.integers(1, 9, 60), strict=True)}
    runs, known = [rng.choice(sorted(vectors), size, replace=False).tolist() for size in (25, 30, 50)], None
    for number, chosen in enumerate(runs):
        table = _group(tmp_path / str(number), {one: counts[one] for one in chosen}, cosines, vectors=vectors, known=known)
        groups = _by_phrase(table, "groups")
        if known is not None:
            for column in ("groups", "names"):
                before, after = _by_phrase(known, column), _by_phrase(table, column)
                assert {phrase: after[phrase] for phrase in before} == before
            _check_new(_by_phrase(known, "groups"), groups, vectors, cosines)
        for grain, names in enumerate(zip(*table["names"].to_pylist(), strict=True)):
            numbers = [found[grain] for found in groups.values()]
            assert set(numbers) == set(range(max(numbers) + 1))
            assert len(set(zip(numbers, names, strict=True))) == len(set(numbers)) == len(set(names))
        known = table
    assert set(_by_phrase(known, "groups")) == set().union(*runs)


def _check_new(before: dict, groups: dict, vectors: dict, cosines: tuple[float, ...]) -> None:
    """Compare where new phrases went with the mean cosines of all pairs."""
    for grain, cosine in enumerate(cosines):
        members = {}
        for phrase, found in before.items():
            members.setdefault(found[grain], []).append(vectors[phrase])
        for phrase in groups.keys() - before.keys():
            mean = {group: float(np.mean(np.array(own) @ vectors[phrase])) for group, own in members.items()}
            best = max(mean, key=mean.__getitem__)
            assert groups[phrase][grain] == best if mean[best] >= cosine else groups[phrase][grain] >= len(members)


def _commit(root: str, chosen: RankingConfig, encoder: EncoderConfig, digest: str | None = None) -> Store:
    store = Store(root)
    artifacts.begin(store, "canonical_interests")
    config = {"ranking": chosen.model_dump(mode="json"), "embeddings": {"encoder": encoder.model_dump(mode="json")}}
    digest = digest or weights_digest(encoder, "test")
    inputs = {"model embeddings.encoder": digest}
    artifacts.commit(store, Manifest(name="canonical_interests", rows=0, config=config, inputs=inputs))
    return store


COSINES = (
    r"ranking\.keep_from = .*: ranking\.interest_cosines is \[0\.6\], there \[0\.7, 0\.45\]; .*leave ranking\.keep_from empty"
)


def test_groups_are_kept_of_the_same_grains_and_encoder_alone(tmp_path):
    chosen, encoder, here = RankingConfig(), EncoderConfig(), Store(str(tmp_path / "here"))
    earlier = _commit(str(tmp_path / "earlier"), chosen.model_copy(update={"rounds": 7}), encoder)
    check_same_choices(earlier, here, chosen, encoder)
    with pytest.raises(ValueError, match=COSINES):
        check_same_choices(earlier, here, chosen.model_copy(update={"interest_cosines": (0.6,)}), encoder)
    with pytest.raises(ValueError, match=r": embeddings\.encoder\.max_tokens is 9, there 128; canonical interests can"):
        check_same_choices(earlier, here, chosen, encoder.model_copy(update={"max_tokens": 9}))
    other = _commit(str(tmp_path / "other"), chosen, encoder, "0123456789abcdef")
    with pytest.raises(ValueError, match=r": digest of embeddings\.encoder is \w+, there 0123456789abcdef; canonical"):
        check_same_choices(other, here, chosen, encoder)
    with pytest.raises(ValueError, match=r"artifact canonical_interests does not exist; run `digr neighbours CONFIG`"):
        check_same_choices(Store(str(tmp_path / "nothing")), here, chosen, encoder)
    with pytest.raises(ValueError, match=r"ranking\.keep_from = .* is this run itself"):
        check_same_choices(earlier, earlier, chosen, encoder)
