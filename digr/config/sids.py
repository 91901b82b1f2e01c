"""Choices of semantic IDs and of the sweep over their codebooks: the sections `sids` and `tune`."""

from typing import Literal

from pydantic import Field, model_validator

from digr.config.base import Section

SMALL_POLICY: dict[str, str | int | float | bool] = {"policy.hidden_dim": 64, "policy.num_layers": 2, "sft.epochs": 8}

MAX_LEVELS = 25
"""Most levels of a quantiser: each level has its own letter in tokens, and the suffix level needs one too."""


class SidsConfig(Section):
    """IEID: how item vectors become semantic IDs."""

    quantiser: Literal["rqvae", "rkmeans"] = "rqvae"
    """Kind of quantiser: RQ-VAE, or residual k-means."""
    level_sizes: tuple[int, ...] | Literal["auto"] = "auto"
    """Codes per level, without the suffix level; "auto" takes three equal levels that fit the catalogue; the manifests of
    `quantiser` and `item_sids` show their size."""
    disambiguation: Literal["colliding", "all", "none"] = "colliding"
    """Which items get a suffix code: those that share all codes with another item, all items, or none."""
    spread: bool = True
    """Move colliding items to their nearest free code of the last level before any suffix code is given."""
    keep_from: str = ""
    """Folder of an earlier run: reuse its quantiser and keep the SIDs of its items. Empty fits a new quantiser."""
    image_weight: float = Field(0.0, ge=0, lt=1)
    """Share of image vectors in the variance of the quantised vectors; 0 leaves images out. Needs embeddings.image_encoder."""
    behaviour_weight: float = Field(0.0, ge=0, lt=1)
    """Share of behaviour vectors in the variance of the quantised vectors; 0 leaves behaviour out. Items that users visit near
    each other in the training sequences have similar ones; an item without any visit gets what its text predicts."""
    latent_dim: int = Field(32, ge=2)
    """Width of the quantised latent (rqvae)."""
    hidden_dims: tuple[int, ...] = (256,)
    """Widths of the encoder's hidden layers, mirrored in the decoder (rqvae)."""
    commitment: float = Field(0.25, ge=0)
    """Weight of the commitment loss, beta (rqvae)."""
    lr: float = Field(3e-3, gt=0)
    """Peak learning rate of AdamW; it falls as a cosine (rqvae)."""
    epochs: int = Field(100, ge=1)
    """Passes over the sampled items (rqvae); k-means always runs 25 iterations."""
    batch_size: int = Field(512, ge=1)
    """Items per step, or the whole catalogue if that is smaller (rqvae)."""
    min_usage_rate: float = Field(0.0, ge=0, le=1)
    """Fail if a level uses less than this share of its codes."""
    max_fit_items: int = Field(1_000_000, ge=1)
    """Most items sampled to fit the quantiser; all items get a semantic ID."""
    workers_above: int = Field(500_000, ge=0)
    """With more sampled items than this, train.num_workers workers of Ray Train fit the quantiser together (rqvae)."""

    @model_validator(mode="after")
    def _the_text_has_a_share(self) -> "SidsConfig":
        if self.image_weight + self.behaviour_weight >= 1:
            raise ValueError(
                f"sids: image_weight ({self.image_weight:g}) and behaviour_weight ({self.behaviour_weight:g}) leave no share for "
                f"the text; their sum must be below 1"
            )
        return self

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
    """A sweep over codebooks with Ray Tune."""

    level_sizes: tuple[tuple[int, ...] | Literal["auto"], ...] = (
        (64, 64, 64),
        (128, 128, 128),
        (256, 256, 256),
        (64, 64, 64, 64),
    )
    """Values of sids.level_sizes to try, with any number of levels; "auto" may be one."""
    quantisers: tuple[Literal["rqvae", "rkmeans"], ...] = ("rqvae", "rkmeans")
    """Values of sids.quantiser to try."""
    latent_dims: tuple[int, ...] = ()
    """Values of sids.latent_dim to try (rqvae); empty tries only sids.latent_dim itself."""
    metric: Literal["raw_collision_rate", "reconstruction_r2", "neighbour_prefix_share", "cointeraction_prefix_share"] = (
        "raw_collision_rate"
    )
    """Metric that ranks candidates: lowest for raw_collision_rate, highest for the others (prefix shares: at the first code)."""
    early_stopping: bool = True
    """Stop an RQ-VAE that lags behind the others at the same epoch (ASHA, arXiv 1810.05934)."""
    reduction_factor: int = Field(3, ge=2)
    """Early stopping lets one in this many trials go on at each of its checks."""
    policy_trials: int = Field(0, ge=0)
    """Train a policy on this many of the best candidates; their NDCG@10 on validation then chooses the best. 0 trains none."""
    policy_overrides: dict[str, str | int | float | bool] = Field(default_factory=SMALL_POLICY.copy)
    """Keys that these policies change in the run's config, with their values."""
    max_concurrent: int = Field(0, ge=0)
    """Most trials at once; 0 runs as many as there are cores for, or GPUs with cluster.use_gpu."""
    cpus_per_trial: float = Field(1.0, gt=0)
    """Logical CPUs of one trial, and its PyTorch threads."""
