"""Choices of the policy: its backbone, text tasks, training, reward and decoding."""

from typing import Literal

from pydantic import Field, model_validator

from digr.config.base import Section
from digr.config.models import Dtype, ModelConfig

Attention = Literal["sdpa", "eager"]


class PolicyConfig(Section):
    """The decoder that writes semantic IDs."""

    backbone: Literal["scratch", "hf"] = "scratch"
    """A small decoder with random initial weights, or a Hugging Face causal language model."""
    base: str = ""
    """Local folder or Hugging Face hub name of the language model (backbone = "hf")."""
    hidden_dim: int = Field(128, ge=16)
    """Width of the model (backbone = "scratch"); a multiple of num_heads."""
    num_layers: int = Field(3, ge=1)
    """Layers (scratch)."""
    num_heads: int = Field(4, ge=1)
    """Attention heads (scratch)."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout while training (scratch)."""
    revision: str = ""
    """Branch, tag or commit of a hub model; empty is its main branch (hf)."""
    attention: Attention = "sdpa"
    """Attention implementation (hf). Flash attention cannot read the masks that separate completions of one prompt."""
    max_tokens: int = Field(512, ge=8)
    """Longest prompt and completion together, tokens. In training and decoding, a longer prompt loses its oldest items. A
    completion in words that takes more than half of these tokens is cut at its end."""
    init_from_texts: bool = True
    """Initialise each SID token from the interests and titles of its items; false initialises at random (hf)."""
    prompt_interests: int = Field(0, ge=0, le=20)
    """How many of the user's strongest trusted interests a prompt shows before the history; 0 shows none (hf). Prompts for
    earlier targets than the user's last in training show none: the interests were mined from those targets too."""
    lora_rank: int = Field(0, ge=0)
    """Rank of LoRA adapters on every linear layer, trained beside the SID tokens; 0 trains all weights (hf)."""
    lora_alpha: float = Field(32.0, gt=0)
    """Scale of the adapters: their output is multiplied by lora_alpha / lora_rank (hf)."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input while training (hf)."""

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

    A number says how often each example of the task is seen per epoch: 2 twice, 1 once, 0.5 in about half of the epochs, 0 never.
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
    """Trusted interests of the user -> SID of the user's last training item; needs "user" in interests.owners."""
    interest_history_to_sid: float = Field(1.0, ge=0, le=10)
    """Trusted interests of the user and SID history -> SID of the user's last training item; needs policy.prompt_interests
    above 0."""
    max_text_chars: int = Field(100, ge=8)
    """Longest title, and longest list of interests, in characters; the rest is cut."""


class TrainConfig(Section):
    """How Ray Train runs the policy's training."""

    engine: Literal["deepspeed", "plain"] = "deepspeed"
    """Training engine: DeepSpeed, or plain PyTorch with exactly one worker."""
    num_workers: int = Field(2, ge=1)
    """Number of data-parallel workers."""
    threads_per_worker: int = Field(1, ge=1)
    """PyTorch threads per worker on CPU."""
    use_gpu: bool = False
    """Train on GPUs, one per worker; false trains on CPU."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: what workers share out (1 optimiser state, 2 also gradients, 3 also weights; 0 nothing)."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What main memory holds instead of the GPU: the optimiser state, or with zero_stage = 3 also the weights ("all")."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of activations and, with DeepSpeed, of the weights in forward and backward passes. The optimiser always
    updates fp32 weights."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, about a third more time."""
    max_failures: int = Field(2, ge=0)
    """Most restarts after a worker is lost."""

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
    """Tokens per optimiser step, over all workers, padding included."""
    accumulate: int = Field(1, ge=1)
    """Batches into which each worker splits its share of a step. More batches need less memory; the step stays the same size."""
    warmup_rate: float = Field(0.05, ge=0, lt=1)
    """Share of all steps in which the learning rate rises; then it falls as a cosine."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    eval_every_epochs: int = Field(2, ge=1)
    """Epochs between validations; a checkpoint is saved at each."""
    checkpoint_every_steps: int = Field(0, ge=0)
    """Steps between further checkpoints, for long epochs; 0 saves none."""
    patience: int = Field(4, ge=1)
    """Stop after this many validations in a row without a better NDCG@10."""
    max_valid_examples: int = Field(10_000, ge=1)
    """Most validation examples used for early stopping, drawn at random."""
    valid_beam_width: int = Field(20, ge=10, le=1000)
    """Beam width of the decoder on validation."""


class RewardConfig(Section):
    """Weights of the reward terms; an unset weight comes from the preset."""

    preset: Literal["paper", "successor", "minionerec", "digr"] = "digr"
    """Reward whose weights fill the unset ones: a published one, or "digr", our own."""
    exact: float | None = None
    """Weight of: 1 if the roll-out is the target, else 0."""
    rank: float | None = None
    """Weight of a penalty on wrong roll-outs, the higher their rank in the group the larger (MiniOneRec)."""
    valid: float | None = None
    """Weight of: 1 if the roll-out is a real item, else 0; the trie allows real items only, so always 1."""
    prefix: float | None = None
    """Weight of the share of leading codes equal to the target's."""
    quality: float | None = None
    """Weight of the target's interest quality if the roll-out is the target, else 0."""
    interest: float | None = None
    """Weight of the cosine of the trusted-interest vectors of roll-out and target, times the roll-out's interest quality."""
    user_interest: float | None = None
    """Weight of the cosine of the trusted-interest vectors of roll-out and user; 0 in all presets. Needs "user" in
    interests.owners."""
    canonical: float | None = None
    """Weight of the cosine of the canonical interests of roll-out and target (finest grain, rare ones weigh more), times the
    roll-out's interest quality; 0 in all presets. Run `digr neighbours` first."""


class GrpoConfig(Section):
    """Group relative policy optimisation under the interest-aware reward."""

    enabled: bool = True
    """Train with GRPO after SFT; false recommends from the SFT policy and evaluates it alone. Each ablation has its own
    switch, `ablations.grpo`."""
    steps: int = Field(100, ge=1)
    """Optimiser steps."""
    prompts_per_step: int = Field(64, ge=1)
    """Prompts per step, over all workers; each makes one group of roll-outs."""
    group_size: int = Field(16, ge=2)
    """Roll-outs per prompt."""
    rollouts: Literal["beam", "sample", "distinct"] = "beam"
    """How roll-outs are drawn on the trie: beam search, sampling with repeats, or sampling without ("distinct")."""
    accumulate: int = Field(1, ge=1)
    """Parts into which each worker splits its prompts of a step. More parts need less memory; the step stays the same size."""
    updates_per_rollout: int = Field(1, ge=1)
    """Optimiser steps on one set of roll-outs; ratio clipping has an effect only from the second on."""
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo"] = "grpo"
    """Variant of the policy loss."""
    lr: float = Field(1e-5, gt=0)
    """Peak learning rate."""
    warmup_rate: float = Field(0.05, ge=0, lt=1)
    """Share of all steps in which the learning rate rises; then it falls as a cosine."""
    kl_coefficient: float = Field(1e-3, ge=0)
    """Weight of the KL penalty that keeps the policy near the SFT policy."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """The probability ratio is clipped below at 1 - clip_low."""
    clip_high: float = Field(0.2, gt=0)
    """The probability ratio is clipped above at 1 + clip_high (DAPO's paper uses 0.28)."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    keep: Literal["ndcg", "reward"] = "ndcg"
    """Which checkpoint to keep: the one with the best NDCG@10 on validation, or the one with the highest mean reward there
    whose NDCG@10 is no worse than the SFT policy's."""
    eval_every_steps: int = Field(20, ge=1)
    """Steps between validations and checkpoints."""
    max_valid_examples: int = Field(10_000, ge=1)
    """Most validation examples used to choose the checkpoint, drawn at random."""
    valid_beam_width: int = Field(20, ge=10, le=1000)
    """Beam width of the decoder on validation."""
    reward: RewardConfig = RewardConfig()


class DecodingConfig(Section):
    """Constrained beam search."""

    beam_width: int = Field(50, ge=1, le=1000)
    """Beams kept per level; at least k."""
    k: int = Field(20, ge=1, le=1000)
    """Items per recommended list."""
    exact: bool = False
    """Repeat a search with twice the beams until its list is proven to be the most probable items, or until `max_beam_width`;
    applies to `digr recommend`."""
    max_beam_width: int = Field(1000, ge=1, le=10_000)
    """Widest beam of an exact search."""
    batch_size: int = Field(64, ge=1)
    """Requests decoded in one batch."""
    dtype: Dtype = "auto"
    """Number format of the weights: "auto" is bf16 on a GPU and fp32 on a CPU; a scratch policy is always fp32."""

    @model_validator(mode="after")
    def _beam_covers_k(self) -> "DecodingConfig":
        if self.beam_width < self.k:
            raise ValueError(f"decoding: beam_width ({self.beam_width}) must be at least k ({self.k})")
        return self
