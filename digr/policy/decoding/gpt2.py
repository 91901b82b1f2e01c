"""Decoding steps of a plain GPT-2 (the `scratch` backbone): the operations of its `forward`, written out on the same weights.

For fifty tokens of width 128, half the time of that `forward` is Python overhead. If a CPU reads few tokens, attention is
compiled and skips masked positions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from digr.policy.decoding.choosing import COMPILES
from digr.policy.decoding.steps import BranchBias, KeysValues

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D


def is_plain_gpt2(lm: "PreTrainedModel") -> bool:
    """Whether an LM is a GPT-2 in evaluation mode, without adapters and with the usual attention and activation."""
    from transformers import GPT2LMHeadModel
    from transformers.pytorch_utils import Conv1D

    if type(lm) is not GPT2LMHeadModel or lm.training:
        return False
    config = lm.config
    odd = config.scale_attn_by_inverse_layer_idx or config.add_cross_attention or not config.scale_attn_weights
    layers = [one for block in lm.transformer.h for one in _linear_layers(block)]
    plain = type(lm.transformer.wte) is nn.Embedding and all(type(one) is Conv1D for one in layers)
    return plain and not odd and config.activation_function == "gelu_pytorch_tanh"


def _linear_layers(block: Any) -> list["Conv1D"]:
    return [block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj]


class Gpt2Weights:
    """The weights of a plain GPT-2, not copies, so later changes take effect."""

    def __init__(self, lm: Any) -> None:
        self.num_heads = lm.config.num_attention_heads
        self.tokens, self.positions = lm.transformer.wte.weight, lm.transformer.wpe.weight
        self.layers = [
            (_norm_of(block.ln_1), _norm_of(block.ln_2), [(one.bias, one.weight) for one in _linear_layers(block)])
            for block in lm.transformer.h
        ]
        self.last_norm = _norm_of(lm.transformer.ln_f)


class Gpt2Steps:
    """Steps of a plain GPT-2, equal to `GPT2Model.forward`; after the last attention only requested tokens are computed."""

    def __init__(self, weights: Gpt2Weights, past: Sequence[KeysValues]) -> None:
        self.weights = weights
        self.two_u = weights.tokens.new_tensor(1.5957691216057308)
        self.keys_values = list(past)
        self.branches: BranchBias | CompiledBranches | None = None

    def read(
        self,
        tokens: Int[Tensor, "B Q"],
        positions: Int[Tensor, "B Q"],
        blocked: Float[Tensor, "B Q S"] | None,
        wanted: Int[Tensor, "B 1"] | None = None,
    ) -> Float[Tensor, "B P D"]:
        """Read more tokens of the prompts, see `Steps`."""
        behind = list[KeysValues]()
        if blocked is None and not self.keys_values and self._is_small(tokens):
            attend = partial(_attend_compiled, tokens.shape, self.weights.num_heads, behind)
        else:
            attend = partial(self._attend, tokens.shape, None if blocked is None else blocked[:, None], behind)
        hidden = self._run(tokens, positions, attend, wanted)
        self.keys_values = behind
        return hidden.view(len(tokens), -1, hidden.shape[1])

    def branch(
        self, tokens: Int[Tensor, "B Q"], parent: Int[Tensor, "B Q"], length: Int[Tensor, "B 1"]
    ) -> Float[Tensor, "B Q D"]:
        """Read one more token of every branch, see `Steps`."""
        if self.branches is None:
            width, dtype = self.keys_values[0].shape[3], self.weights.tokens.dtype
            small = self._is_small(tokens)
            self.branches = CompiledBranches(self.keys_values, length) if small else BranchBias(length, width, dtype)
        if isinstance(self.branches, BranchBias):
            return self.read(tokens, *self.branches.grow(parent))
        positions, attend = self.branches.grow(parent)
        return self._run(tokens, positions, attend).view(*tokens.shape, -1)

    def _is_small(self, tokens: Int[Tensor, "B Q"]) -> bool:
        """Whether compiled attention in one thread is faster than PyTorch's in all threads (measured on two cores)."""
        weights = self.weights.tokens
        fits = weights.device.type == "cpu" and weights.dtype == torch.float32
        return COMPILES and fits and tokens.numel() * torch.get_num_threads() <= 4096

    def _attend(
        self, shape: torch.Size, mask: Float[Tensor, "B 1 Q S"] | None, behind: list[KeysValues], layer: int, mixed: Tensor
    ) -> Float[Tensor, "P D"]:
        """Compute attention to all tokens read so far, see `_Attend`; append the layer's keys and values to `behind`."""
        parts = mixed.view(*shape, 3, self.weights.num_heads, -1)
        query, newest = parts[:, :, 0].transpose(1, 2), parts[:, :, 1:].permute(2, 0, 3, 1, 4)
        behind.append(torch.cat([self.keys_values[layer], newest], 3) if self.keys_values else newest)
        keys, values = behind[-1]
        seen = functional.scaled_dot_product_attention(query, keys, values, mask, is_causal=mask is None)
        return seen.transpose(1, 2).reshape(len(mixed), -1)

    def _run(
        self,
        tokens: Int[Tensor, "B Q"],
        positions: Int[Tensor, "B Q"],
        attend: "_Attend",
        wanted: Int[Tensor, "B 1"] | None = None,
    ) -> Float[Tensor, "P D"]:
        weights = self.weights
        state = weights.tokens.index_select(0, tokens.flatten()) + weights.positions.index_select(0, positions.flatten())
        for layer, (norm_1, norm_2, (mix, out, up, down)) in enumerate(weights.layers):
            seen = attend(layer, torch.addmm(mix[0], torch.layer_norm(state, *norm_1), mix[1]))
            if wanted is not None and layer + 1 == len(weights.layers):
                row = torch.arange(len(tokens), device=tokens.device) * tokens.shape[1] + wanted[:, 0]
                seen, state = seen.index_select(0, row), state.index_select(0, row)
            state = torch.addmm(out[0], seen, out[1]).add_(state)
            wide = _tanh_gelu(torch.addmm(up[0], torch.layer_norm(state, *norm_2), up[1]), self.two_u)
            state = torch.addmm(down[0], wide, down[1]).add_(state)
        return torch.layer_norm(state, *weights.last_norm)


_Attend = Callable[[int, Float[Tensor, "P E"]], Float[Tensor, "P D"]]
"""Attention of a layer: takes its index and the concatenated query, key and value of each token, returns the output."""


def _attend_compiled(
    shape: torch.Size, num_heads: int, behind: list[KeysValues], layer: int, mixed: Float[Tensor, "P E"]
) -> Float[Tensor, "P D"]:
    """Compute attention of prompts without earlier tokens, see `_Attend`."""
    from digr.policy.decoding.cpu import attend_prompts  # Numba takes half a second to import

    parts = mixed.numpy().reshape(*shape, 3, num_heads, -1)
    num_rows, width, _, _, dim = parts.shape
    prompts, seen = (
        np.empty((2, num_rows, num_heads, width, dim), np.float32),
        np.empty((num_rows, width, num_heads, dim), np.float32),
    )
    attend_prompts(parts, prompts, seen)
    behind.append(torch.from_numpy(prompts))
    return torch.from_numpy(seen.reshape(len(mixed), -1))


class CompiledBranches:
    """Keys and values of branches on a CPU, and attention that reads only a branch's prompt and its own tokens."""

    def __init__(self, prompts: Sequence[KeysValues], length: Int[Tensor, "B 1"]) -> None:
        self.positions, self.length = length, length.flatten().numpy()
        self.prompts = [both.contiguous().numpy() for both in prompts]
        _, num_rows, num_heads, _, dim = prompts[0].shape
        self.rows = np.arange(num_rows)[:, None]
        self.branches = np.empty((len(prompts), num_rows, 1, 0, 2, num_heads, dim), np.float32)

    def grow(self, parent: Int[Tensor, "B Q"]) -> tuple[Int[Tensor, "B Q"], "_Attend"]:
        """Add a token to every branch; return positions and the attention function."""
        from digr.policy.decoding.cpu import attend_branches  # Numba takes half a second to import

        layers, _, _, depth, *sizes = self.branches.shape
        branches = np.empty((layers, *parent.shape, depth + 1, *sizes), np.float32)
        if depth:
            branches[:, :, :, :depth] = self.branches[:, self.rows, parent.numpy()]
        self.branches, seen = branches, np.empty((*parent.shape, *sizes[1:]), np.float32)
        positions, self.positions = self.positions.expand_as(parent), self.positions + 1
        result = torch.from_numpy(seen.reshape(parent.numel(), -1))  # reused: a layer's output is read before the next one's

        def attend(layer, mixed):
            parts = mixed.numpy().reshape(*parent.shape, 3, *sizes[1:])
            branches[layer, :, :, depth] = parts[:, :, 1:]
            attend_branches(parts, self.prompts[layer], self.length, branches[layer], seen)
            return result

        return positions, attend


def _norm_of(norm: nn.LayerNorm) -> tuple[tuple[int, ...], Tensor, Tensor, float]:
    return norm.normalized_shape, norm.weight, norm.bias, norm.eps


def _tanh_gelu(x: Float[Tensor, "P E"], two_u: Float[Tensor, ""]) -> Float[Tensor, "P E"]:
    """Compute tanh GELU, in fp32 on a CPU as x sigmoid(2 u), which is x (1 + tanh u) / 2: half the time of PyTorch's own.

    Args:
        two_u: sqrt(8 / pi), the factor of x in 2 u.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return functional.gelu(x, approximate="tanh")
    return torch.addcmul(two_u, x, x, value=0.07135481282553248).mul_(x).sigmoid_().mul_(x)
