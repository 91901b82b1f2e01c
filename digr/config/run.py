"""Choices of a run as a whole: where it lives, its data, evaluation, baselines, seeds, ablations and the cluster."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from digr.config.base import Section


class RunConfig(Section):
    """Where a run lives and what makes it repeatable."""

    dir: str
    """Folder for all artifacts of the run: a local path or s3://bucket/prefix."""
    seed: int = Field(0, ge=0)
    """Seed of every random choice of the run."""
    variant: str = Field("", pattern=r"^[a-z0-9_]*$")
    """Name of the ablation that is being built; empty for the main run. `digr run` sets it."""
    tracker: Literal["none", "mlflow", "wandb"] = "none"
    """Tracker that gets training metrics besides metrics.jsonl and TensorBoard files; its package must be installed."""
    tracker_project: str = "digr"
    """Name of the MLflow experiment or Weights & Biases project."""
    tracker_uri: str = ""
    """URL of the MLflow server; empty takes MLflow's default. Weights & Biases reads its environment variables instead."""


class SyntheticConfig(Section):
    """The embedded shop: a generated catalogue whose interests are known."""

    num_items: int = Field(600, ge=20)
    """Items of the shop."""
    num_users: int = Field(2000, ge=20)
    """Users of the shop."""
    num_interests: int = Field(24, ge=2)
    """Planted interests."""
    image_size: int = Field(64, ge=16, le=1024)
    """Side of the drawn product images, pixels."""


class DataConfig(Section):
    """Where items and interactions come from and how they are split."""

    source: Literal["synthetic", "parquet"] = "synthetic"
    """The generated shop of `data.synthetic`, or a folder of Parquet tables (`data.path`)."""
    path: str = ""
    """Folder that `digr data import` writes: items.parquet, interactions.parquet and perhaps splits/ (source = "parquet")."""
    columns: Mapping[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """Column names that `digr data import` cannot guess: ours = theirs, or ours = [theirs in one file, theirs in another]."""
    split: Literal["official", "leave_one_out", "temporal"] = "leave_one_out"
    """Take the data's own splits/ folder, hold out each user's last two items, or split targets 80/10/10 % by time."""
    orphans: Literal["error", "drop"] = "error"
    """What to do with interactions whose item is not in items.parquet."""
    duplicates: Literal["error", "drop"] = "error"
    """What to do with an item's rows after its first and, if interactions have no `position`, with repeated rows of one user,
    item and time."""
    untitled: Literal["error", "drop"] = "error"
    """What to do with items without a title that have interactions; those without interactions are always dropped."""
    min_rating: float = 0
    """Drop interactions with a lower rating; those without a rating stay. Official splits keep all interactions."""
    ties: Literal["file_order", "random", "error"] = "file_order"
    """Order of a user's interactions at the same time, if interactions have no `position`."""
    currency: str = Field("", pattern=r"^([A-Z]{3})?$")
    """Currency of prices that name none, as an ISO 4217 code such as EUR; empty if unknown."""
    strip_html: bool = True
    """Turn HTML in titles, descriptions and brands into plain text."""
    core: int = Field(0, ge=0)
    """Keep users and items with at least this many interactions, repeatedly; 0 keeps all."""
    max_history: int = Field(10, ge=1, le=1000)
    """Most items in a history; the newest are kept."""
    items_per_part: int = Field(16_384, ge=1)
    """Items per part of each item table; a worker processes one part at a time."""
    users_per_part: int = Field(16_384, ge=1)
    """Users per part of each user table; a worker processes one part at a time."""
    synthetic: SyntheticConfig = SyntheticConfig()

    @model_validator(mode="after")
    def _path_is_read(self) -> "DataConfig":
        if self.source == "synthetic" and self.path:
            raise ValueError(
                f'data.path = {self.path!r} is not read with data.source = "synthetic"; set data.source = "parquet", or leave '
                f"data.path empty"
            )
        return self


class EvaluationConfig(Section):
    """What is measured."""

    ks: tuple[int, ...] = (5, 10)
    """Cutoffs k of the metrics, as in Recall@k and NDCG@k."""
    bootstrap: int = Field(1000, ge=100)
    """Bootstrap resamples for the 95 % confidence intervals."""


class SeedsConfig(Section):
    """Runs that differ in their seed, which `digr compare` measures together."""

    runs: tuple[str, ...] = ()
    """Folders or s3:// addresses of further runs on the same data; the first run is always `run.dir`."""


MAX_TOWER_ITEMS = 200_000
"""Largest catalogue for the towers: each training step scores all items."""


class TowersConfig(Section):
    """The trained baselines: SASRec over item ids, SASRec over text vectors, and the sum of both."""

    enabled: bool = False
    """Train these baselines. Each step scores every item, so a catalogue of more than 200,000 items is refused."""
    dim: int = Field(64, ge=8)
    """Model width."""
    num_layers: int = Field(2, ge=1)
    """Transformer layers."""
    num_heads: int = Field(2, ge=1)
    """Attention heads."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Dropout while training."""
    temperature: float = Field(0.07, gt=0)
    """Softmax temperature: the cosine of history and item is divided by this."""
    epochs: int = Field(30, ge=1)
    """Most passes over the training sequences."""
    patience: int = Field(3, ge=1)
    """Stop after this many epochs in a row without a better NDCG@10 on validation."""
    lr: float = Field(2e-3, gt=0)
    """Learning rate."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW weight decay."""
    batch_size: int = Field(128, ge=1)
    """Training windows per step, each of up to data.max_history targets. Each target scores all items, so a step needs about
    12 bytes x targets x items of memory."""
    max_valid_examples: int = Field(10_000, ge=1)
    """Most validation examples used for early stopping, drawn at random."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "TowersConfig":
        if self.dim % self.num_heads:
            raise ValueError(f"towers: dim ({self.dim}) must be a multiple of num_heads ({self.num_heads})")
        return self


class ClusterConfig(Section):
    """What changes speed, not results."""

    address: str = ""
    """Address of the Ray cluster to join; empty joins the one in RAY_ADDRESS, else starts a local Ray."""
    num_cpus: int = Field(0, ge=0)
    """Logical CPUs of a local Ray; 0 takes the machine's count, but at least 8, because each pipeline stage holds one."""
    prepare_memory_gib: float = Field(2.0, ge=0.25)
    """Memory for the database that prepares data, GiB; larger work spills to disk."""
    encode_batch_size: int = Field(256, ge=1)
    """Texts per encoder call."""
    encode_workers: int = Field(1, ge=1)
    """Encoder processes."""
    encode_threads: int = Field(2, ge=1)
    """CPU threads of each encoder process, and of each task that builds the ranking."""
    use_gpu: bool = False
    """Run encoders, classifier and quantiser on GPUs."""


class AblationConfig(Section):
    """A variant with some keys changed, built from the embeddings on and added to the metrics table."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Name of the variant; its artifacts are in <run.dir>/variants/<name>."""
    overrides: dict[str, str | int | float | bool | list[Any]]
    """Keys that this variant changes, with their values, such as {"embeddings.interests" = "none"}."""
    grpo: bool = False
    """Also run GRPO for this variant."""
