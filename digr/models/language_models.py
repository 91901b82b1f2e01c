"""A Hugging Face causal LM as backbone: SID tokens that start from texts, and LoRA adapters that are saved merged."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from digr.config.policy import Attention, PolicyConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER = "default"


def load_lm(path: str | Path, dtype: torch.dtype, attention: Attention = "sdpa", revision: str = "main") -> "PreTrainedModel":
    """Load a causal LM from a folder or hub name, with an attention that supports 4-D masks of branches."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path, trust_remote_code=False, dtype=dtype, attn_implementation=attention, revision=revision
    )


def extend_lm(
    config: PolicyConfig, tokens: Sequence[str], code_texts: Sequence[Sequence[str]] | None
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a causal LM in fp32 for training, and add SID tokens to its vocabulary.

    Args:
        tokens: SID tokens, level by level.
        code_texts: per level and code, a text whose mean embedding is the token's start. For empty texts, and for None,
            transformers draws embeddings around the mean of the vocabulary, from the global generator.

    Raises:
        ValueError: policy.base is empty, or the model reads fewer tokens than policy.max_tokens.
    """
    from transformers import AutoTokenizer

    if not config.base:
        raise ValueError('policy.base: is empty; backbone = "hf" needs a local folder or a hub model')
    revision = config.revision or "main"
    tokenizer = AutoTokenizer.from_pretrained(config.base, revision=revision)
    lm = load_lm(config.base, torch.float32, config.attention, revision)
    longest = getattr(lm.config.get_text_config(), "max_position_embeddings", config.max_tokens)
    if config.max_tokens > longest:
        raise ValueError(f"policy.max_tokens = {config.max_tokens}, but {config.base} reads at most {longest}; lower it")
    tokenizer.model_max_length = config.max_tokens  # saved with the policy, so that decoding has the limit of training
    tokenizer.add_tokens(list(tokens))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if len(tokenizer) > lm.config.get_text_config().vocab_size:
        lm.resize_token_embeddings(len(tokenizer))
    if code_texts is not None:
        texts = [text for level in code_texts for text in level]
        ids = [tokenizer.get_vocab()[token] for token in tokens]
        _start_from_texts(lm, tokenizer, ids, texts)
    return lm, tokenizer


@torch.no_grad()
def _start_from_texts(
    lm: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    ids: Sequence[int],
    texts: Sequence[str],
) -> None:
    """Set the input and output row of each token to the mean of the rows of its text's tokens."""
    rows = [row for row, text in enumerate(texts) if text]
    if not rows:
        return
    tokens = tokenizer([texts[row] for row in rows], add_special_tokens=False)["input_ids"]
    offsets = torch.tensor([0, *map(len, tokens[:-1])]).cumsum(0)
    flat, chosen = torch.tensor([token for row in tokens for token in row]), torch.tensor(ids)[rows]
    inputs, outputs = lm.get_input_embeddings().weight, lm.get_output_embeddings().weight
    for table in [inputs] if outputs is inputs else [inputs, outputs]:
        table[chosen] = nn.functional.embedding_bag(flat, table, offsets, mode="mean")


def add_lora(lm: "PreTrainedModel", config: PolicyConfig, sid_ids: Sequence[int]) -> None:
    """Freeze the LM, and add LoRA adapters to its linear layers and trainable rows for its SID tokens, in place.

    Hu et al. 2021, arXiv 2106.09685. The adapters start at zero: outputs do not change before the first step.

    Args:
        sid_ids: tokens whose input and output embeddings are trained; all other tokens stay frozen.
    """
    from peft import LoraConfig, get_peft_model

    tables = {lm.get_input_embeddings()} | ({lm.get_output_embeddings()} if not lm.config.tie_word_embeddings else set())
    names = [name for name, module in lm.named_modules() if module in tables]
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora_dropout,
        target_modules="all-linear",
        trainable_token_indices={name: list(sid_ids) for name in names},
        task_type="CAUSAL_LM",
    )
    get_peft_model(lm, lora, adapter_name=ADAPTER)


class HeadWeights(NamedTuple):
    """Weights of an LM's output head."""

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None
    sid_rows: Float[Tensor, "S D"] | None
    """Rows that replace those of the SID tokens, in the order given to `add_lora`; None without adapters."""


def head_weights(head: nn.Module) -> HeadWeights:
    """Return the weights of an output head, with or without adapters; peft's own `weight` would copy the whole vocabulary."""
    adapter: Any = getattr(head, "token_adapter", None)
    if adapter is None:
        return HeadWeights(head.weight, getattr(head, "bias", None), None)  # type: ignore[arg-type]
    base, is_off = adapter.get_base_layer(), adapter.disable_adapters
    return HeadWeights(base.weight, base.bias, None if is_off else adapter.trainable_tokens_delta[ADAPTER])


@contextmanager
def without_adapters(lm: "PreTrainedModel") -> Iterator[None]:
    """Switch the LM's adapters off inside the block."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers = [module for module in lm.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def merged_weights(lm: "PreTrainedModel") -> dict[str, Tensor]:
    """Return the LM's weights with adapters merged in; the LM itself is not changed, not even by rounding."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    weights = {name: value for name, value in lm.state_dict().items() if "lora_" not in name and "trainable_tokens" not in name}
    plain = {name.replace(".base_layer.", ".").replace(".token_adapter.", "."): value for name, value in weights.items()}
    for name, module in lm.named_modules():
        if isinstance(module, LoraLayer) and module.r:
            base = module.get_base_layer().weight
            plain[f"{name}.weight"] = (base + module.get_delta_weight(ADAPTER)).to(base.dtype).cpu()  # type: ignore[attr-defined]
        elif isinstance(module, TrainableTokensLayer):
            plain[f"{name.removesuffix('.token_adapter')}.weight"] = module.get_merged_weights([ADAPTER]).cpu()
    if lm.config.tie_word_embeddings:
        head = lm.get_output_embeddings()
        plain = {name: value for name, value in plain.items() if lm.get_submodule(name.rpartition(".")[0]) is not head}
    return plain


def save_lm(lm: "PreTrainedModel", folder: str | Path) -> None:
    """Write a Hugging Face folder: config, and weights as safetensors with adapters merged in."""
    adapted = any("lora_" in name for name, _ in lm.named_parameters())
    lm.save_pretrained(folder, state_dict=merged_weights(lm) if adapted else None)
