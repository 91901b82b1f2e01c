"""Ray Data shared by several jobs: a pool of actors over a table, in its order, and a sink that splits rows."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.data import Datasink

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from jobs.runtime.parts import read_parts

BLOCK_ROWS = 1024
"""Rows handed to an actor at once."""


def map_items(
    config: Config,
    store: Store,
    worker: Callable[..., Any],
    output: str,
    *,
    source: str = "items",
    arguments: tuple[Any, ...] = (),
    block_rows: int = BLOCK_ROWS,
) -> int:
    """Run a worker over batches of `items` and write what it returns, row by row, as parts of `output`.

    Blocks keep the order of the table, so every part covers a narrow range of ids.

    Args:
        worker: a class with `__init__(config, store, *arguments)` and `__call__(pa.Table) -> pa.Table`, made once in each of
            `cluster.encode_workers` actors; or a function of a table, config, store and the arguments.
        source: table to read instead of `items`.
        block_rows: rows handed to a worker at once.

    Returns:
        Rows written.

    Raises:
        ValueError: another number of rows came out than expected.
    """
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    how: dict[str, Any] = {"fn_args": (config, store, *arguments)}
    if isinstance(worker, type):
        how = {"fn_constructor_args": (config, store, *arguments), "num_gpus": 1 if config.cluster.use_gpu else None}
        how["compute"] = ray.data.ActorPoolStrategy(size=config.cluster.encode_workers)
    blocks = read_parts(store.uri(source)).repartition(target_num_rows_per_block=block_rows)
    made = blocks.map_batches(worker, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, **how)
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
