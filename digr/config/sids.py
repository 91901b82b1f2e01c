"""Choices of semantic IDs and of the sweep over their codebooks: the sections `sids` and `tune`."""

from typing import Literal

from pydantic import Field, model_validator

from digr.config.base import Section

SMALL_POLICY: dict[str, str | int | float | bool] = {"policy.hidden_dim": 64, "policy.num_layers": 2, "sft.epochs": 8}

MAX_LEVELS = 25
"""Levels of a quantiser: a token is a letter and a code, and the suffix level needs a letter too."""


class SidsConfig(Section):
    """IEID: how vectors become semantic IDs."""

    quantiser: Literal["rqvae", "rkmeans"] = "rqvae"
    """RQ-VAE, or residual k-means."""
    level_sizes: tuple[int, ...] | Literal["auto"] = "auto"
    """Codes per level, without the suffix level; "auto" takes three levels of as many as fit the catalogue, and the manifests of
    `quantiser` and `item_sids` say how many those are."""
    disambiguation: Literal["colliding", "all", "none"] = "colliding"
    """Which items get a suffix code."""
    spread: bool = True
    """Balanced assignment: before any suffix code, move colliding items to their nearest free code of the last level."""
    keep_from: str = ""
    """Folder of an earlier run whose quantiser is used and whose items keep their SIDs; empty fits a new quantiser."""
    image_weight: float = Field(0.0, ge=0, lt=1)
    """Share of the images in the quantised vectors' variance; 0 leaves images out (embeddings.image_encoder makes them)."""
    latent_dim: int = Field(32, ge=2)
    """Width of the quantised latent (rqvae)."""
    hidden_dims: tuple[int, ...] = (256,)
    """Widths of the encoder's hidden layers, mirrored in the decoder (rqvae)."""
    commitment: float = Field(0.25, ge=0)
    """Weight of the commitment loss, beta (rqvae)."""
    lr: float = Field(3e-3, gt=0)
    """Peak learning rate of AdamW, falling as a cosine (rqvae)."""
    epochs: int = Field(100, ge=1)
    """Passes over the sampled items (rqvae); k-means always runs 25 iterations."""
    batch_size: int = Field(512, ge=1)
    """Items per step; the whole catalogue if it is smaller (rqvae)."""
    min_usage_rate: float = Field(0.0, ge=0, le=1)
    """Fail when a level uses less than this share of its codes."""
    max_fit_items: int = Field(1_000_000, ge=1)
    """Items sampled to fit the quantiser; all are assigned."""
    workers_above: int = Field(500_000, ge=0)
    """More sampled items than this are shared by train.num_workers workers of Ray Train (rqvae)."""

    @model_validator(mode="after")
    def _levels_are_sane(self) -> "SidsConfig":
        if self.level_sizes == "auto":
            return self
        if not self.level_sizes or min(self.level_sizes) < 2 or max(self.level_sizes) > 65_536:
            raise ValueError(f"sids.level_sizes: each level needs 2 to 65536 codes, found {list(self.level_sizes)}")
        if len(self.level_sizes) > MAX_LEVELS:
            raise ValueError(f"sids.level_sizes: at most {MAX_LEVELS} levels have a letter, found {len(self.level_sizes)}")
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """`level_sizes` once they are numbers, see `digr.sids.sizes.sized`."""
        assert self.level_sizes != "auto", "read digr.sids.sizes.sized(config, num_items)"
        return self.level_sizes


class TuneConfig(Section):
    """Ray Tune over codebooks."""

    level_sizes: tuple[tuple[int, ...] | Literal["auto"], ...] = (
        (64, 64, 64),
        (128, 128, 128),
        (256, 256, 256),
        (64, 64, 64, 64),
    )
    """Candidates of sids.level_sizes, of any depth; "auto" may be one."""
    quantisers: tuple[Literal["rqvae", "rkmeans"], ...] = ("rqvae", "rkmeans")
    """Candidates of sids.quantiser."""
    latent_dims: tuple[int, ...] = ()
    """Candidates of sids.latent_dim (rqvae); empty tries the configured one."""
    metric: Literal["raw_collision_rate", "reconstruction_r2", "neighbour_prefix_share", "cointeraction_prefix_share"] = (
        "raw_collision_rate"
    )
    """What the best candidate is best in: fewest collisions, or most of the others (shares: of the first code)."""
    early_stopping: bool = True
    """Stop an RQ-VAE that lags behind the others at the same epoch (ASHA, arXiv 1810.05934)."""
    reduction_factor: int = Field(3, ge=2)
    """One in this many goes on at each look of early stopping."""
    policy_trials: int = Field(0, ge=0)
    """The best candidates on which a policy is trained to measure NDCG@10 on validation, which then decides."""
    policy_overrides: dict[str, str | int | float | bool] = Field(default_factory=SMALL_POLICY.copy)
    """What that policy has other than the run's own."""
    max_concurrent: int = Field(0, ge=0)
    """Trials at once; 0 takes as many as the machine or cluster has cores (GPUs with cluster.use_gpu) for."""
    cpus_per_trial: float = Field(1.0, gt=0)
    """Logical CPUs of one trial, and its PyTorch threads."""
