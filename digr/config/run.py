"""Choices of a run as a whole: where it lives, its data, evaluation, baselines, seeds, ablations and the cluster."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from digr.config.base import Section


class RunConfig(Section):
    """Where a run lives and what makes it repeatable."""

    dir: str
    """Folder of all artifacts of the run: a local path or s3://bucket/prefix."""
    seed: int = Field(0, ge=0)
    """Seed of every random choice of the run."""
    variant: str = Field("", pattern=r"^[a-z0-9_]*$")
    """Name of the ablation this run builds; empty for the main one. Set by jobs.pipeline."""
    tracker: Literal["none", "mlflow", "wandb"] = "none"
    """Where a training's metrics go besides its metrics.jsonl and TensorBoard files; the package must be installed."""
    tracker_project: str = "digr"
    """MLflow experiment, or Weights & Biases project."""
    tracker_uri: str = ""
    """MLflow server; empty takes MLflow's own default (Weights & Biases reads its environment variables)."""


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
    """The embedded shop, or a folder of Parquet tables in the common form."""
    path: str = ""
    """Folder with items.parquet, interactions.parquet and perhaps splits/, as jobs.import_data writes it (source = "parquet")."""
    columns: Mapping[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """Columns that jobs.import_data would not guess: ours = theirs, or ours = [theirs in one file, theirs in another]."""
    split: Literal["official", "leave_one_out", "temporal"] = "leave_one_out"
    """The splits/ folder of the data; or last two items of a user held out; or 80/10/10 % of targets by time."""
    orphans: Literal["error", "drop"] = "error"
    """What to do with interactions whose item is not in items.parquet."""
    duplicates: Literal["error", "drop"] = "error"
    """What to do with an item's rows after its first, and, where interactions have no `position`, with further rows of the same
    user, item and time."""
    untitled: Literal["error", "drop"] = "error"
    """What to do with items without a title that someone interacted with; those that nobody did are always left out."""
    min_rating: float = 0
    """Interactions rated lower are left out; those without a rating stay, and so do all where the splits are official."""
    ties: Literal["file_order", "random", "error"] = "file_order"
    """The order of a user's interactions of one time where there is no `position`."""
    currency: str = Field("", pattern=r"^([A-Z]{3})?$")
    """ISO 4217 code of prices that name no currency of their own, such as EUR; empty where nobody knows."""
    strip_html: bool = True
    """Whether markup in titles, descriptions and brands is turned into the text it shows."""
    core: int = Field(0, ge=0)
    """Keep users and items with at least this many interactions, repeatedly; 0 keeps all."""
    max_history: int = Field(10, ge=1, le=1000)
    """Items kept of a history, the newest."""
    items_per_part: int = Field(16_384, ge=1)
    """Items of one part of all tables about items: what a worker takes at once."""
    users_per_part: int = Field(16_384, ge=1)
    """Users of one part of all tables about users."""
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
    """Cutoffs."""
    bootstrap: int = Field(1000, ge=100)
    """Bootstrap resamples of the 95 % intervals."""


class SeedsConfig(Section):
    """Runs that differ in their seed, which `jobs.compare_runs` measures together."""

    runs: tuple[str, ...] = ()
    """Folders or s3:// addresses of further runs of the same data; the first run is `run.dir`."""


MAX_TOWER_ITEMS = 200_000
"""Items of a catalogue that the towers take at most: each training step scores all of them."""


class TowersConfig(Section):
    """The baselines that are trained: SASRec over item ids, the same over text vectors, and their sum."""

    enabled: bool = False
    """Whether the run has them. Each training step scores every item, so a catalogue of more than 200,000 is refused."""
    dim: int = Field(64, ge=8)
    """Model width."""
    num_layers: int = Field(2, ge=1)
    """Transformer layers."""
    num_heads: int = Field(2, ge=1)
    """Attention heads."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Dropout while training."""
    temperature: float = Field(0.07, gt=0)
    """The cosine of a history's state and an item is divided by this."""
    epochs: int = Field(30, ge=1)
    """Passes over the training sequences, at most."""
    patience: int = Field(3, ge=1)
    """Epochs without a better NDCG@10 on validation before stopping."""
    lr: float = Field(2e-3, gt=0)
    """Learning rate."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW weight decay."""
    batch_size: int = Field(128, ge=1)
    """Windows of training sequences per step, of up to data.max_history targets each. All items are scored for each target, so
    memory is some 12 bytes times targets times items."""
    max_valid_examples: int = Field(10_000, ge=1)
    """Validation examples drawn for early stopping."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "TowersConfig":
        if self.dim % self.num_heads:
            raise ValueError(f"towers: dim ({self.dim}) must be a multiple of num_heads ({self.num_heads})")
        return self


class ClusterConfig(Section):
    """What changes speed, not results."""

    address: str = ""
    """Ray cluster to join; empty joins RAY_ADDRESS or starts a local Ray."""
    num_cpus: int = Field(0, ge=0)
    """Logical CPUs of a local Ray; 0 gives the machine's, at least 8 (each stage of a pipeline holds one)."""
    prepare_memory_gib: float = Field(2.0, ge=0.25)
    """Memory of the database that prepares data, GiB; what needs more goes to disk."""
    encode_batch_size: int = Field(256, ge=1)
    """Texts per encoder call."""
    encode_workers: int = Field(1, ge=1)
    """Encoder processes."""
    encode_threads: int = Field(2, ge=1)
    """PyTorch threads of an encoder process on CPU."""
    use_gpu: bool = False
    """Encoders, classifier and quantiser on GPU."""


class AblationConfig(Section):
    """A second pass from the embeddings on, with other choices, for the metrics table."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Name of the variant; its artifacts are in <run.dir>/variants/<name>."""
    overrides: dict[str, str | int | float | bool | list[Any]]
    """Dotted keys and their values."""
    grpo: bool = False
    """Also run GRPO for it."""
