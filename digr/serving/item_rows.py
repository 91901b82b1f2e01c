"""Rows of `items` that are mapped from a file, with the rows of items that were added or changed since."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int

_BATCH_ROWS = 65_536


class ItemRows(NamedTuple):
    """Rows of `items`, found by their places."""

    batches: list[pa.RecordBatch]
    """Rows of the run, `_BATCH_ROWS` in each batch but the last; mapped."""
    changed: Int[np.ndarray, " C"]
    """Places of added and changed items, ascending."""
    rows: pa.RecordBatch
    """Their rows."""

    def take(self, places: Int[np.ndarray, " M"] | Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of some places, in their order."""
        places = np.asarray(places, np.int64)
        at = np.minimum(np.searchsorted(self.changed, places), max(len(self.changed) - 1, 0))
        is_changed = self.changed[at] == places if len(self.changed) else np.zeros(len(places), bool)
        source = np.where(is_changed, -1, places // _BATCH_ROWS)
        row = np.where(is_changed, at, places % _BATCH_ROWS)
        parts, order = [], []
        for number in np.unique(source).tolist():
            here = np.flatnonzero(source == number)
            parts.append(self._batch(number, columns).take(pa.array(row[here])))
            order.append(here)
        if not parts:
            return pa.Table.from_batches([self._batch(-1, columns).slice(0, 0)])
        return pa.Table.from_batches(parts).combine_chunks().take(pa.array(np.argsort(np.concatenate(order))))

    def with_changes(self, changed: Int[np.ndarray, " C"], rows: pa.Table) -> "ItemRows":
        """Return the mapped rows with other added and changed ones.

        Args:
            changed: their places, in any order.
            rows: the rows.
        """
        order = np.argsort(changed, kind="stable")
        (batch,) = rows.take(pa.array(order)).combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], rows.schema)]
        return self._replace(changed=changed[order], rows=batch)

    def _batch(self, number: int, columns: Sequence[str] | None) -> pa.RecordBatch:
        batch = self.rows if number < 0 else self.batches[number]
        return batch if columns is None else batch.select(list(columns))


def save_rows(path: Path, items: pa.Table) -> None:
    """Write rows of `items` in the order of their places."""
    with pa.ipc.new_file(path, items.schema) as writer:
        for start in range(0, len(items), _BATCH_ROWS):
            writer.write_table(items.slice(start, _BATCH_ROWS).combine_chunks())


def map_rows(path: Path) -> ItemRows:
    """Map rows of `save_rows`, of which none is added or changed yet."""
    file = pa.ipc.open_file(pa.memory_map(str(path)))
    batches = [file.get_batch(number) for number in range(file.num_record_batches)]
    return ItemRows(batches, np.zeros(0, np.int64), pa.RecordBatch.from_pylist([], file.schema))
