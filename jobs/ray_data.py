"""Ray Data shared by several jobs: a table's parts as a source, a pool of actors over them, and a sink that splits rows."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import ray
from ray.data import Dataset, Datasink, Datasource, ReadTask
from ray.data.block import BlockMetadata

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config

BLOCK_ROWS = 1024
"""Rows handed to an actor at once."""
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
    yield files.schema.empty_table().select(columns or files.schema.names)  # a task without rows still has columns
    for batch in files.to_batches(columns=columns, filter=wanted):
        yield pa.Table.from_batches([batch])


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


def map_items(
    config: Config,
    store: Store,
    worker: Callable[..., Any],
    output: str,
    *,
    source: str = "items",
    arguments: tuple[Any, ...] = (),
    block_rows: int = BLOCK_ROWS,
    use_gpu: bool | None = None,
) -> int:
    """Run `worker(config, store)` over batches of `items` and write what it returns, row by row, as parts of `output`.

    The worker is made once per actor (`cluster.encode_workers` of them). Blocks keep the order of the table, so every
    part covers a narrow range of ids.

    Args:
        worker: a class with `__init__(config, store, *arguments)` and `__call__(pa.Table) -> pa.Table`.
        source: table to read instead of `items`.
        block_rows: rows handed to a worker at once.
        use_gpu: give each actor a GPU, if not as `cluster.use_gpu` says.

    Returns:
        Rows written.

    Raises:
        ValueError: another number of rows came out than expected.
    """
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    cluster = config.cluster
    blocks = read_parts(store.uri(source)).repartition(target_num_rows_per_block=block_rows)
    made = blocks.map_batches(
        worker,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        fn_constructor_args=(config, store, *arguments),
        compute=ray.data.ActorPoolStrategy(size=cluster.encode_workers),
        num_gpus=1 if (cluster.use_gpu if use_gpu is None else use_gpu) else None,
    )
    filesystem, path = artifacts.filesystem_of(store.uri(output))
    made.write_parquet(path, filesystem=filesystem)
    rows = artifacts.open_parts(store.uri(output)).count_rows()
    wanted = artifacts.require(store, source).rows
    if rows != wanted:
        raise ValueError(
            f"{store.uri(output)}: {rows} rows came out, {wanted} expected; an input changed: rebuild it with --force"
        )
    return rows


class SplitSink(Datasink[None]):
    """Write each split's rows into a folder of its own; a repeated task writes the same files again."""

    def __init__(self, folders: Mapping[str, str]) -> None:
        self.folders = dict(folders)

    def write(self, blocks: Iterable[Any], ctx: Any) -> None:
        """Write one part per split that occurs in the blocks."""
        rows = pa.concat_tables(blocks)
        for split, folder in self.folders.items():
            part = rows.filter(pc.equal(rows["split"], split)).drop_columns("split")
            if len(part):
                filesystem, path = artifacts.filesystem_of(folder)
                filesystem.create_dir(path, recursive=True)
                pq.write_table(part, f"{path}/part-{ctx.task_idx:06d}.parquet", filesystem=filesystem)
