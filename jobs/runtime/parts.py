"""The Parquet parts of a table as a Ray Dataset."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import ray
from ray.data import Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata

from digr import artifacts

READ_ROWS = 16_384
"""Rows that a task reads at once, at most."""
READ_TASKS = 1000
"""Tasks that read a table at most; more parts than that share them."""


class _Parts(Datasource):
    """Parquet files, each read by one task from beginning to end.

    Ray's own source starts processes that look at all footers before each read, which takes longer than most reads of parts.
    """

    def __init__(self, uri: str, columns: Sequence[str] | None, wanted: pc.Expression | None) -> None:
        super().__init__()
        self.parts = artifacts.list_parts(uri)
        if not self.parts:
            raise ValueError(f"{uri}: no Parquet files; run the job that writes them")
        self.read = partial(_read, filesystem=artifacts.filesystem_of(uri)[0], columns=columns, wanted=wanted)

    def estimate_inmemory_data_size(self) -> None:
        """Nothing is known before the read."""

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> list[ReadTask]:
        """Share the parts among tasks, in their order."""
        tasks = []
        for share in np.array_split(np.array(self.parts, object), min(parallelism, len(self.parts))):
            parts = share.tolist()
            facts = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=parts)
            tasks.append(ReadTask(partial(self.read, parts), facts, per_task_row_limit=per_task_row_limit))
        return tasks


def _read(parts: list[str], filesystem: Any, columns: Sequence[str] | None, wanted: pc.Expression | None) -> Iterator[pa.Table]:
    files = pads.dataset(parts, filesystem=filesystem, format="parquet")
    found = False
    for batch in files.to_batches(columns=columns, filter=wanted, batch_size=READ_ROWS):
        if len(batch):
            found = True
            yield pa.Table.from_batches([batch])
    if not found:  # so that a task without rows still has columns
        yield files.schema.empty_table().select(columns or files.schema.names)


def read_parts(uri: str, columns: Sequence[str] | None = None, wanted: pc.Expression | None = None) -> Dataset:
    """Open a table as a Ray Dataset, in the order of its parts' names; nothing is read yet.

    Args:
        uri: folder of its Parquet files, or one of them.
        columns: to read; None for all.
        wanted: which rows to read.

    Raises:
        ValueError: there is no file.
    """
    source = _Parts(uri, columns, wanted)
    return ray.data.read_datasource(source, override_num_blocks=min(len(source.parts), READ_TASKS))
