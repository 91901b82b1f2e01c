"""Rows of users in batches."""

import pyarrow as pa

from digr.data.sequences import with_first_rows


def test_a_user_begins_once_also_where_a_batch_ends_within_its_rows_or_is_empty():
    batches = [pa.table({"user_id": users}) for users in (["a", "a", "b"], pa.array([], pa.string()), ["b", "c"], ["c"], ["a"])]
    found = [first.tolist() for _, first in with_first_rows(batches)]
    assert found == [[True, False, True], [False, True], [False], [True]]
