"""Choices of the policy: its backbone, text tasks, training, reward and decoding."""

from typing import Literal

from pydantic import Field, model_validator

from digr.config.base import Section
from digr.config.models import Dtype, ModelConfig

Attention = Literal["sdpa", "eager"]


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
    revision: str = ""
    """Branch, tag or commit of a hub model; empty is its main branch (hf)."""
    attention: Attention = "sdpa"
    """Attention implementation (hf). Flash attention cannot read the masks that keep a prompt's completions apart."""
    max_tokens: int = Field(512, ge=8)
    """Longest prompt and completion together, tokens. A prompt that is too long loses its oldest items, in training and
    decoding alike; a completion in words that is longer than half of it is cut at its end."""
    init_from_texts: bool = True
    """Start each SID token from the interests and titles of its items, not at random (hf)."""
    prompt_interests: int = Field(0, ge=0, le=20)
    """Trusted interests of the user that a prompt shows before the history, the strongest so many; 0 shows none (hf). They
    are shown from the user's last training target on: earlier ones are among the items that were mined."""
    lora_rank: int = Field(0, ge=0)
    """Rank of LoRA adapters on every linear layer, trained beside the SID tokens; 0 trains all weights (hf)."""
    lora_alpha: float = Field(32.0, gt=0)
    """The adapters are scaled by this over the rank."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapters while training."""

    @property
    def base_model(self) -> ModelConfig:
        """The pretrained model, by name and revision."""
        return ModelConfig(name=self.base, revision=self.revision)

    @model_validator(mode="after")
    def _language_model_is_there(self) -> "PolicyConfig":
        if self.backbone == "scratch" and self.hidden_dim % self.num_heads:
            raise ValueError(f"policy: hidden_dim ({self.hidden_dim}) must be a multiple of num_heads ({self.num_heads})")
        if self.lora_rank and self.backbone != "hf":
            raise ValueError(
                f'policy: lora_rank = {self.lora_rank} needs backbone = "hf"; a scratch policy trains all its weights'
            )
        if self.prompt_interests and self.backbone != "hf":
            raise ValueError(
                f'policy: prompt_interests = {self.prompt_interests} needs backbone = "hf"; a scratch policy reads no words'
            )
        return self


class TasksConfig(Section):
    """The text tasks that an hf backbone learns beside history -> SID.

    A number says how often an example of the task is seen per epoch: 1 always, 0.5 every other time, 0 never.
    """

    title_to_sid: float = Field(1.0, ge=0, le=10)
    """Item title -> its SID."""
    sid_to_title: float = Field(1.0, ge=0, le=10)
    """SID -> the item's title."""
    interest_to_sid: float = Field(1.0, ge=0, le=10)
    """Trusted interests of an item -> its SID."""
    sid_to_interest: float = Field(1.0, ge=0, le=10)
    """SID -> the item's trusted interests."""
    history_to_title: float = Field(1.0, ge=0, le=10)
    """SID history -> title of the next item."""
    titles_to_sid: float = Field(1.0, ge=0, le=10)
    """Titles of the history -> SID of the next item."""
    user_interest_to_sid: float = Field(1.0, ge=0, le=10)
    """Trusted interests of the user -> SID of the user's last training item; only where users were mined."""
    interest_history_to_sid: float = Field(1.0, ge=0, le=10)
    """Trusted interests of the user and SID history -> SID of the user's last training item; only with
    policy.prompt_interests above 0."""
    max_text_chars: int = Field(100, ge=8)
    """Characters kept of a title, and of a list of interests."""


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
    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep the optimiser's state, or with zero_stage = 3 also the weights, in main memory instead of the GPU's."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of activations, and with DeepSpeed of the weights that compute them. The weights that the optimiser changes
    are fp32 in any case."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    max_failures: int = Field(2, ge=0)
    """Restarts after lost workers."""

    @model_validator(mode="after")
    def _parts_fit(self) -> "TrainConfig":
        if self.engine == "plain" and self.num_workers != 1:
            raise ValueError(f'train: engine = "plain" runs one worker, found num_workers = {self.num_workers}')
        if self.engine == "deepspeed" and self.precision == "bf16" and not self.zero_stage:
            raise ValueError(
                'train: precision = "bf16" needs zero_stage of 1 or more, found 0; 1 keeps all weights on each worker too'
            )
        lowest = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < lowest:
            raise ValueError(f'train: offload = "{self.offload}" needs zero_stage of {lowest} or more, found {self.zero_stage}')
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
    accumulate: int = Field(1, ge=1)
    """Batches that each worker takes one after the other for a step: its memory falls with it, the step stays as large."""
    warmup_rate: float = Field(0.05, ge=0, lt=1)
    """Share of steps with rising learning rate; cosine after."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping."""
    eval_every_epochs: int = Field(2, ge=1)
    """Epochs between validation by the decoder; also between checkpoints."""
    checkpoint_every_steps: int = Field(0, ge=0)
    """Steps between further checkpoints, for epochs that are long; 0 for none."""
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
    user_interest: float | None = None
    """Cosine of the trusted-interest vectors of roll-out and user; in no preset. Only where users were mined."""
    canonical: float | None = None
    """Cosine of roll-out's and target's canonical interests at the finest grain, rare ones weighing more, times the roll-out's
    quality; in no preset. Only where jobs.build_neighbours has run."""


class GrpoConfig(Section):
    """Group relative policy optimisation under the interest-aware reward."""

    enabled: bool = True
    """Whether the run has GRPO; without it the supervised policy is recommended from and evaluated alone. An ablation has its
    own switch, `ablations.grpo`."""
    steps: int = Field(100, ge=1)
    """Optimiser steps."""
    prompts_per_step: int = Field(64, ge=1)
    """Groups per step, over all workers."""
    group_size: int = Field(16, ge=2)
    """Roll-outs per prompt."""
    rollouts: Literal["beam", "sample", "distinct"] = "beam"
    """Trie beam, or sampling on the trie with or without repeats."""
    accumulate: int = Field(1, ge=1)
    """Parts of its prompts that each worker takes one after the other for a step: its memory falls with it, the step stays
    as large."""
    updates_per_rollout: int = Field(1, ge=1)
    """Optimiser steps on one set of roll-outs; clipping matters from the second on."""
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo"] = "grpo"
    """Loss variant."""
    lr: float = Field(1e-5, gt=0)
    """Peak learning rate."""
    warmup_rate: float = Field(0.05, ge=0, lt=1)
    """Share of steps with rising learning rate; cosine after."""
    kl_coefficient: float = Field(1e-3, ge=0)
    """Weight of the KL guard towards the SFT policy."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """Ratio clip below 1."""
    clip_high: float = Field(0.2, gt=0)
    """Ratio clip above 1 (dapo: 0.28)."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping."""
    keep: Literal["ndcg", "reward"] = "ndcg"
    """Which weights come back: those of the best NDCG@10 on validation, or of the highest mean reward there among those that
    rank no worse than the SFT policy."""
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
    exact: bool = False
    """Whether a list that is not proven to be the most probable items is searched again with twice the beams, until it is or
    `max_beam_width` ends it; in jobs.recommend."""
    max_beam_width: int = Field(1000, ge=1, le=10_000)
    """Widest beam of an exact search."""
    batch_size: int = Field(64, ge=1)
    """Requests decoded together."""
    dtype: Dtype = "auto"
    """Number format of the weights: "auto" is bf16 on a GPU and fp32 on a CPU, and always fp32 for a scratch policy."""

    @model_validator(mode="after")
    def _beam_covers_k(self) -> "DecodingConfig":
        if self.beam_width < self.k:
            raise ValueError(f"decoding: beam_width ({self.beam_width}) must be at least k ({self.k})")
        return self
