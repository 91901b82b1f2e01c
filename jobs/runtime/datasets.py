"""Process tables with Ray: workers read part k of their inputs and write part k of their outputs; or Ray Datasets of rows."""

import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import ray
from ray.data import ActorPoolStrategy, Dataset, Datasource, ReadTask, TaskPoolStrategy
from ray.data.block import BlockMetadata

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.partitions import Part, part_uri
from digr.tables import conform, table_spec

READ_ROWS = 16_384
"""Most rows that a task reads at once."""
READ_TASKS = 1000
"""Most tasks that read a table; if there are more parts, a task reads several."""
OutputTables = Iterator[tuple[str, pa.Table]]
"""Tables of rows, each with its output's name, in the order of writing."""


def map_parts(
    config: Config,
    store: Store,
    worker: Callable[..., Any],
    parts: Sequence[Part],
    outputs: Sequence[str],
    *,
    arguments: tuple[Any, ...] = (),
) -> Counter[str]:
    """Process parts in workers, which write the same part of each output; return the rows of each output.

    A part of every output is written, even without rows. It appears only when complete, and a repeated task replaces it.
    A worker streams: it yields the rows of a part batch by batch.

    Args:
        worker: a class with `__init__(config, store, *arguments)` and `__call__(part) -> OutputTables`, which holds a model, see
            `map_with_model`; or a function `(part, config, store, *arguments) -> OutputTables`.
        arguments: arguments of the worker; pass large ones as Ray references.
    """
    dataset, outputs = part_dataset(parts), tuple(outputs)
    if isinstance(worker, type):
        made = map_with_model(dataset, config, _PartWriter, (worker, (config, store, *arguments), store, outputs), len(parts))
    else:
        write: Any = _write_parts
        given = (lambda part: worker(part, config, store, *arguments), store, outputs)
        made = dataset.map_batches(write, batch_size=None, batch_format="pyarrow", fn_args=given)
    rows = Counter[str](dict.fromkeys(outputs, 0))
    for batch in made.iter_batches(batch_size=None, batch_format="pyarrow"):
        assert isinstance(batch, pa.Table)
        for output, count in zip(batch["output"].to_pylist(), batch["rows"].to_pylist(), strict=True):
            rows[output] += count
    return rows


def map_with_model(
    blocks: Dataset, config: Config, worker: Callable[..., Any], arguments: tuple[Any, ...], most_workers: int | None = None
) -> Dataset:
    """Map blocks, as Arrow tables, in `cluster.encode_workers` processes, each of which makes `worker(*arguments)` once.

    On GPUs the workers are actors. On CPUs they are tasks: Ray reuses their processes from stage to stage, which saves ten
    seconds of imports per stage, and each process keeps its last worker.

    Args:
        arguments: arguments of the worker; pass large ones as Ray references.
        most_workers: most processes that have work to do, if known.
    """
    size = min(config.cluster.encode_workers, most_workers or config.cluster.encode_workers)
    formats: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
    if config.cluster.use_gpu:
        compute = ActorPoolStrategy(size=size)
        return blocks.map_batches(worker, fn_constructor_args=arguments, compute=compute, num_gpus=1, **formats)
    call: Any = _call_kept_worker
    given = (uuid.uuid4().hex, worker, arguments)
    return blocks.map_batches(call, fn_args=given, compute=TaskPoolStrategy(size=size), **formats)


_kept_worker: dict[str, Any] = {}
"""The last worker of this process, by the name of its stage."""


def _call_kept_worker(block: pa.Table, stage: str, worker: Callable[..., Any], arguments: tuple[Any, ...]) -> pa.Table:
    if stage not in _kept_worker:
        _kept_worker.clear()
        _kept_worker[stage] = worker(*arguments)
    return _kept_worker[stage](block)


def map_tables(dataset: Dataset, function: Any, **arguments: Any) -> Dataset:
    """Map whole blocks, as Arrow tables, through `function(table, **arguments)`."""
    return dataset.map_batches(function, batch_size=None, batch_format="pyarrow", fn_kwargs=arguments or None)


def start_task(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a worker; return a reference to its result."""
    task: Any = ray.remote(function)
    return task.remote(*arguments)


def part_dataset(parts: Sequence[Part]) -> Dataset:
    """Return a Ray Dataset of the parts, one block per part, for `parts_in`."""
    return ray.data.from_arrow([pa.table({"owner": [part.owner], "number": [part.number]}) for part in parts])


def parts_in(block: pa.Table) -> list[Part]:
    """Return the parts of a block of `part_dataset`."""
    return [Part(**row) for row in block.to_pylist()]


class _PartWriter:
    """A worker with a model, and its outputs."""

    def __init__(self, worker: Callable[..., Any], arguments: tuple[Any, ...], store: Store, outputs: Sequence[str]) -> None:
        self.worker, self.store, self.outputs = worker(*arguments), store, outputs

    def __call__(self, parts: pa.Table) -> pa.Table:
        return _write_parts(parts, self.worker, self.store, self.outputs)


def _write_parts(parts: pa.Table, worker: Callable[[Part], OutputTables], store: Store, outputs: Sequence[str]) -> pa.Table:
    rows = dict.fromkeys(outputs, 0)
    for part in parts_in(parts):
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(artifacts.open_part(part_uri(store, name, part), table_spec(name).schema))
                for name in outputs
            }
            for name, table in worker(part):
                writers[name].write_table(conform(name, table, store.uri(name)))
                rows[name] += len(table)
    return pa.table({"output": list(rows), "rows": list(rows.values())})


class _Parts(Datasource):
    """Parquet files, each read completely by one task.

    Ray's source reads all footers in separate processes before each read, which takes longer than most reads of parts.
    """

    def __init__(self, uri: str, columns: Sequence[str] | None, wanted: pc.Expression | None) -> None:
        super().__init__()
        self.parts = artifacts.list_parts(uri)
        if not self.parts:
            raise ValueError(f"{uri}: no Parquet files; run the job that writes them")
        self.read = partial(_read, filesystem=artifacts.filesystem_of(uri)[0], columns=columns, wanted=wanted)

    def estimate_inmemory_data_size(self) -> None:
        """Return None: the size is not known before the read."""

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> list[ReadTask]:
        """Distribute the parts over tasks, in order."""
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
        columns: columns to read; None for all.
        wanted: which rows to read.

    Raises:
        ValueError: there is no Parquet file.
    """
    source = _Parts(uri, columns, wanted)
    return ray.data.read_datasource(source, override_num_blocks=min(len(source.parts), READ_TASKS))
