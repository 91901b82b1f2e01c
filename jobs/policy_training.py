"""What `train_sft` and `train_grpo` share: engine, shards, checkpoints, and the artifact a training ends in."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import ray.train
import torch

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.policy.engine import Engine, PlainEngine, make_optimizer
from digr.policy.examples import Sids
from digr.policy.model import SidPolicy
from digr.policy.validation import Progress, ValidExamples
from digr.policy.vocabulary import sid_texts
from digr.sids.trie import SidTrie, codes_of
from jobs.deepspeed_engine import DeepSpeedEngine


def make_engine(config: Config, policy: SidPolicy, *, lr: float, weight_decay: float, max_grad_norm: float) -> Engine:
    """Put a policy into the configured engine; the random numbers of this worker start from seed and rank."""
    torch.manual_seed(config.run.seed + ray.train.get_context().get_world_rank())
    optimizer = make_optimizer(policy, lr, weight_decay)
    if config.train.engine == "plain":
        return PlainEngine(policy, optimizer, max_grad_norm=max_grad_norm, precision=config.train.precision)
    return DeepSpeedEngine(config.train, policy, optimizer, max_grad_norm)


def worker_env(config: Config) -> dict[str, str]:
    """Environment of a worker: DeepSpeed must be told that there is no accelerator."""
    return {} if config.train.use_gpu else {"DS_ACCELERATOR": "cpu"}


def absolute(store: Store) -> Store:
    """Return the store with an absolute address: Ray Train's workers run in a folder of their own."""
    return store if artifacts.is_remote(store.root) else store._replace(root=artifacts.filesystem_of(store.root)[1])


def load_sids(store: Store) -> Sids:
    """Read the text of every item's SID."""
    table = artifacts.read_table(store, "item_sids")
    num_levels = len(artifacts.require(store, "item_sids").facts["level_sizes"])
    return Sids(table["item_id"].combine_chunks(), sid_texts(codes_of(table, num_levels)))


def read_shard(name: str) -> Iterator[pa.Table]:
    """Stream this worker's shard of a dataset; the same rows in every run, up to one row per worker less for evenness."""
    return iter(ray.train.get_dataset_shard(name).iter_batches(batch_format="pyarrow", batch_size=4096))


def item_positions(trie: SidTrie, item_ids: pa.ChunkedArray) -> torch.Tensor:
    """Find items in the trie's order."""
    return torch.from_numpy(pc.index_in(item_ids, value_set=trie.item_ids).to_numpy().astype(np.int64))


def read_valid(name: str, trie: SidTrie, max_examples: int, seed: int) -> ValidExamples:
    """Draw this worker's part of the validation examples."""
    context = ray.train.get_context()
    table = pa.concat_tables([batch.select(["prompt", "target"]) for batch in read_shard(name)])
    share = -(-max_examples // context.get_world_size())
    chosen = np.random.default_rng([seed, context.get_world_rank()]).permutation(len(table))[:share]
    table = table.take(pa.array(np.sort(chosen)))
    return ValidExamples(table["prompt"].to_pylist(), item_positions(trie, table["target"]))


def save(record: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Hand metrics and this worker's checkpoint files to Ray Train."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        ray.train.report(record, checkpoint=ray.train.Checkpoint.from_directory(folder))


@contextmanager
def folders() -> Iterator[tuple[Path | None, Path]]:
    """Give the folder of the checkpoint to go on from, if there is one, and a scratch folder for the best weights."""
    checkpoint = ray.train.get_checkpoint()
    with tempfile.TemporaryDirectory() as scratch:
        if checkpoint is None:
            yield None, Path(scratch) / "best"
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder), Path(scratch) / "best"


def write_policy(store: Store, name: str, checkpoint: ray.train.Checkpoint) -> Progress:
    """Make a policy artifact of a finished training: best weights, metrics.jsonl, rollouts.jsonl, TensorBoard events."""
    filesystem, path = checkpoint.filesystem, checkpoint.path
    with filesystem.open_input_stream(f"{path}/progress.json") as stream:
        progress = Progress(**json.loads(stream.read()))
    to_filesystem, to_path = artifacts.filesystem_of(store.uri(name))
    pafs.copy_files(f"{path}/best", to_path, source_filesystem=filesystem, destination_filesystem=to_filesystem)
    with tempfile.TemporaryDirectory() as folder:
        for file, rows in (("metrics.jsonl", progress.records), ("rollouts.jsonl", progress.samples)):
            (Path(folder) / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        _write_events(Path(folder) / "tensorboard", progress.records)
        artifacts.put_files(store, name, Path(folder))
    return progress


def _write_events(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for record in records:
            for key, value in record.items():
                if key not in ("step", "epoch"):
                    writer.add_scalar(key, value, int(record["step"]))
