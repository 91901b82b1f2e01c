"""The policy: its backbone, its training and its decoding."""

from typing import Literal

from pydantic import Field, model_validator

from digr.config.base import Section


class PolicyConfig(Section):
    """The decoder that writes semantic IDs."""

    backbone: Literal["scratch", "hf"] = "scratch"
    """A small decoder from random weights, or a Hugging Face causal LM."""
    base: str = ""
    """Local folder or hub name (backbone = "hf")."""
    hidden_dim: int = Field(128, ge=16)
    """Model width (scratch)."""
    num_layers: int = Field(3, ge=1)
    """Layers (scratch)."""
    num_heads: int = Field(4, ge=1)
    """Attention heads (scratch)."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout while training (scratch)."""
    max_tokens: int = Field(512, ge=8)
    """Longest prompt and completion together, tokens."""


class TrainConfig(Section):
    """How Ray Train runs the policy's training."""

    engine: Literal["deepspeed", "plain"] = "deepspeed"
    """DeepSpeed, or plain PyTorch (one worker)."""
    num_workers: int = Field(2, ge=1)
    """Data-parallel workers."""
    threads_per_worker: int = Field(1, ge=1)
    """PyTorch threads of a CPU worker."""
    use_gpu: bool = False
    """One GPU per worker."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of weights and activations."""
    max_failures: int = Field(2, ge=0)
    """Restarts after lost workers."""

    @model_validator(mode="after")
    def _plain_is_one_process(self) -> "TrainConfig":
        if self.engine == "plain" and self.num_workers != 1:
            raise ValueError(f'train: engine = "plain" runs one worker, found num_workers = {self.num_workers}')
        return self


class SftConfig(Section):
    """Supervised fine-tuning."""

    epochs: int = Field(25, ge=1)
    """Passes over the examples."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW weight decay."""
    batch_tokens: int = Field(2048, ge=16)
    """Tokens per step over all workers, padding included."""
    warmup_rate: float = Field(0.05, ge=0, lt=1)
    """Share of steps with rising learning rate; cosine after."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping."""
    eval_every_epochs: int = Field(2, ge=1)
    """Epochs between validation by the decoder; also between checkpoints."""
    patience: int = Field(4, ge=1)
    """Validations without a better NDCG@10 before stopping."""
    max_valid_examples: int = Field(10_000, ge=1)
    """Validation examples drawn for early stopping."""
    valid_beam_width: int = Field(20, ge=10, le=1000)
    """Beams of the decoder on validation."""


class RewardConfig(Section):
    """Weights of the named reward terms; a preset fills those not given."""

    preset: Literal["paper", "successor", "minionerec", "digr"] = "digr"
    """Published form, or ours."""
    exact: float | None = None
    """1 for the target itself."""
    rank: float | None = None
    """Penalty on a wrong roll-out by its rank among the group (MiniOneRec)."""
    valid: float | None = None
    """1 for a real item; always 1 under the trie."""
    prefix: float | None = None
    """Share of leading codes equal to the target's."""
    quality: float | None = None
    """Target's interest quality, on an exact hit."""
    interest: float | None = None
    """Cosine of trusted-interest vectors of roll-out and target, times the roll-out's quality."""


class GrpoConfig(Section):
    """Group relative policy optimisation under the interest-aware reward."""

    steps: int = Field(100, ge=1)
    """Optimiser steps."""
    prompts_per_step: int = Field(64, ge=1)
    """Groups per step, over all workers."""
    group_size: int = Field(16, ge=2)
    """Roll-outs per prompt."""
    rollouts: Literal["beam", "sample", "distinct"] = "beam"
    """Trie beam, or sampling on the trie with or without repeats."""
    updates_per_rollout: int = Field(1, ge=1)
    """Optimiser steps on one set of roll-outs; clipping matters from the second on."""
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo"] = "grpo"
    """Loss variant."""
    lr: float = Field(1e-5, gt=0)
    """Learning rate, constant."""
    kl_coefficient: float = Field(1e-3, ge=0)
    """Weight of the KL guard towards the SFT policy."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """Ratio clip below 1."""
    clip_high: float = Field(0.2, gt=0)
    """Ratio clip above 1 (dapo: 0.28)."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping."""
    eval_every_steps: int = Field(20, ge=1)
    """Steps between validations and checkpoints."""
    max_valid_examples: int = Field(10_000, ge=1)
    """Validation examples drawn for choosing the checkpoint."""
    valid_beam_width: int = Field(20, ge=10, le=1000)
    """Beams of the decoder on validation."""
    reward: RewardConfig = RewardConfig()


class DecodingConfig(Section):
    """Constrained beam search."""

    beam_width: int = Field(50, ge=1, le=1000)
    """Beams kept."""
    k: int = Field(20, ge=1, le=1000)
    """Items returned."""
    batch_size: int = Field(64, ge=1)
    """Requests decoded together."""

    @model_validator(mode="after")
    def _beam_covers_k(self) -> "DecodingConfig":
        if self.beam_width < self.k:
            raise ValueError(f"decoding: beam_width ({self.beam_width}) must be at least k ({self.k})")
        return self
