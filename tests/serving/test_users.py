"""Histories of users against a plain loop."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.data.ids import build_id_index
from digr.serving.users import map_histories, newest_interaction, save_histories

ITEMS = build_id_index(pa.array([f"i{index}" for index in range(20)]))


def test_a_user_has_the_newest_known_items_oldest_first(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {"user_id": f"u{user}", "position": position, "item_id": f"i{rng.integers(0, 25)}"}
        for user in range(12)
        for position in range(rng.integers(1, 12))
    ]
    shuffled = pa.Table.from_pylist([rows[index] for index in rng.permutation(len(rows))])
    part = pc.is_in(shuffled["user_id"], value_set=pa.array([f"u{user}" for user in range(5)]))
    parts = (rows for rows in (shuffled.filter(part), shuffled.filter(pc.invert(part))))
    assert sorted(save_histories(tmp_path, parts, ITEMS, max_history=4).to_pylist()) == sorted(f"u{user}" for user in range(12))
    found = map_histories(tmp_path)
    for user in range(12):
        known = [int(row["item_id"][1:]) for row in rows if row["user_id"] == f"u{user}" and int(row["item_id"][1:]) < 20]
        assert found.find(f"u{user}") == known[-4:]
    assert found.find("nobody") is None


@pytest.mark.parametrize("statistics", [True, False])
def test_the_newest_interaction_of_all_parts_is_found(tmp_path, statistics):
    store = Store(str(tmp_path))
    artifacts.begin(store, "interactions")
    for part, times in enumerate(([5, 1_720_414_097_220], [7, None], [1_720_414_097_219])):
        table = pa.table({"timestamp": pa.array(times, pa.timestamp("ms", "UTC"))})
        pq.write_table(table, f"{store.uri('interactions')}/part-{part:05d}.parquet", write_statistics=statistics)
    artifacts.commit(store, Manifest(name="interactions"))
    assert newest_interaction(store) == 1_720_414_097_220
