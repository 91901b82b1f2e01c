"""Language models of known shapes with random weights, and the share of a GPU's arithmetic that their training uses."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from digr.policy.model import SidPolicy
from digr.policy.vocabulary import scratch_tokenizer

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2.5-0.5b": (
        "Qwen2Config",
        {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
        },
    ),
    "qwen3-1.7b": (
        "Qwen3Config",
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
    ),
    "tiny-qwen2": ("Qwen2Config", {}),
    "tiny-qwen3": ("Qwen3Config", {"head_dim": 32}),
}
"""Class of the transformers config, and its sizes; the tiny ones have those of TINY."""
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 2_000,
}
FULL = {"vocab_size": 151_936, "max_position_embeddings": 32_768}
PEAK_TFLOPS = {
    "H200 NVL": 835.5,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.0,
    "H200": 989.5,
    "H100": 989.5,
    "A100": 312.0,
}
"""bf16 matrix products without sparsity, by a part of the GPU's name; from NVIDIA's data sheets of H200, H100 and A100, which
give those of Hopper with sparsity, twice as many. The first name that fits is taken."""


def random_policy(shape: str, levels: Sequence[int], *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> SidPolicy:
    """Make a policy of a shape in evaluation mode; its first tokens are those of the semantic IDs.

    A trained policy has them behind its words instead, which costs the same.

    Args:
        shape: a key of SHAPES.
        levels: codes per level; the tiny shapes hold 1,997 in all.
    """
    import transformers

    name, sizes = SHAPES[shape]
    config = getattr(transformers, name)(**(TINY if shape.startswith("tiny") else FULL), tie_word_embeddings=True, **sizes)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        lm = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return SidPolicy(lm, scratch_tokenizer(levels)).eval().to(device)


def training_flops(lm: nn.Module, lengths: Int[np.ndarray, " S"]) -> float:
    """Count the floating-point operations of a forward and a backward pass over some sequences, without their padding.

    6 N per token, with N the weights of the layers' matrices (embeddings and output head are left out: few rows of the head are
    used), and 6 layers x heads x head width x length per token for causal attention: scores and sums over half of the positions,
    2 operations each, and twice as many backwards.
    """
    config: Any = lm.config
    tables = {id(lm.get_input_embeddings().weight), id(lm.get_output_embeddings().weight)}  # type: ignore[operator]
    num_weights = sum(weight.numel() for weight in lm.parameters() if weight.ndim == 2 and id(weight) not in tables)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_hidden_layers * config.num_attention_heads * head_dim
    return 6.0 * num_weights * float(lengths.sum()) + 6.0 * width * float((lengths.astype(float) ** 2).sum())


def peak_tflops(device: str) -> float | None:
    """Return the most bf16 TFLOP/s of the GPU: the environment variable DIGR_PEAK_TFLOPS, or by its name; None if unknown."""
    if given := os.environ.get("DIGR_PEAK_TFLOPS"):
        return float(given)
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
