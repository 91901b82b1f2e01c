"""Running a policy's transformer for decoding: it reads prompts, then one token after the other of branches behind them.

Any Hugging Face decoder runs through its own `forward`. A plain GPT-2, which the `scratch` backbone is, runs through the
same operations written out on the same weights: at fifty tokens of 128 numbers half of its `forward` is Python around them.
Its attention is compiled where a CPU reads few tokens, and never looks at what a mask would hide.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from digr.policy.decoding.choosing import COMPILES
from digr.policy.model import SidPolicy, blocked_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

KeysValues = Float[Tensor, "2 B H S C"]
"""Keys and values of one layer."""


class Steps(Protocol):
    """A transformer and what it has read so far: prompts, then branches behind each, which share its keys and values."""

    @property
    def keys_values(self) -> Sequence[KeysValues]:
        """What every layer keeps of the prompts; to be asked before the first branch."""

    def read(
        self,
        tokens: Int[Tensor, "B Q"],
        positions: Int[Tensor, "B Q"],
        blocked: Float[Tensor, "B Q S"] | None,
        wanted: Int[Tensor, "B 1"] | None = None,
    ) -> Float[Tensor, "B P D"]:
        """Read more tokens of the prompts and return their hidden states.

        Args:
            positions: place of each token in its own sequence.
            blocked: `blocked_of` the tokens read before and now that each new token does not see; None if none was read
                before and each sees the ones up to itself.
            wanted: the one new token of each row whose state is asked for; None for all.
        """

    def branch(
        self, tokens: Int[Tensor, "B Q"], parent: Int[Tensor, "B Q"], length: Int[Tensor, "B 1"]
    ) -> Float[Tensor, "B Q D"]:
        """Read one more token of every branch, which sees its prompt, its own branch and itself; returns the hidden states.

        Args:
            parent: which branch of the last call each of these goes on from; at the first call 0, for the prompt.
            length: tokens of each prompt; those behind them are padding.
        """


def start_steps(policy: SidPolicy, past: Sequence[KeysValues] = ()) -> Steps:
    """Return the steps of a policy's transformer as it is now, behind keys and values of each layer or from nothing."""
    if policy.written_out is None and is_plain_gpt2(policy.lm):
        policy.written_out = _Gpt2(policy.lm)
    if policy.written_out is None or policy.lm.training:
        return _AnySteps(policy, past)
    return _Gpt2Steps(policy.written_out, past)


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


class _Branches:
    """What branches see of their prompt and of each other, for attention over all of it."""

    def __init__(self, length: Int[Tensor, "B 1"], width: int, dtype: torch.dtype) -> None:
        self.positions = length
        self.blocked = blocked_of(torch.arange(width, device=length.device) >= length[..., None], dtype)

    def grow(self, parent: Int[Tensor, "B Q"]) -> tuple[Int[Tensor, "B Q"], Float[Tensor, "B Q S"]]:
        """Add a token to every branch; returns their positions and `blocked_of` what each does not see."""
        num_rows, width = parent.shape
        before = self.blocked.gather(1, parent[..., None].expand(-1, -1, self.blocked.shape[2]))
        others = before.new_full((width, width), torch.finfo(before.dtype).min).fill_diagonal_(0)
        positions, self.positions = self.positions.expand(-1, width), self.positions + 1
        self.blocked = torch.cat([before, others.expand(num_rows, -1, -1)], 2)
        return positions, self.blocked


class _AnySteps:
    """Steps of any Hugging Face decoder."""

    def __init__(self, policy: SidPolicy, past: Sequence[KeysValues]) -> None:
        from transformers import DynamicCache

        self.policy, self.cache = policy, DynamicCache()
        self.branches: _Branches | None = None
        for layer, (keys, values) in enumerate(past):
            self.cache.update(keys, values, layer)

    @property
    def keys_values(self) -> list[KeysValues]:
        layers: list[Any] = self.cache.layers
        return [torch.stack([layer.keys, layer.values]) for layer in layers]

    def read(
        self,
        tokens: Int[Tensor, "B Q"],
        positions: Int[Tensor, "B Q"],
        blocked: Float[Tensor, "B Q S"] | None,
        wanted: Int[Tensor, "B 1"] | None = None,
    ) -> Float[Tensor, "B P D"]:
        hidden = self.policy.hidden(
            input_ids=tokens,
            attention_mask=None if blocked is None else blocked[:, None],
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return hidden if wanted is None else hidden.gather(1, wanted[..., None].expand(-1, -1, hidden.shape[2]))

    def branch(
        self, tokens: Int[Tensor, "B Q"], parent: Int[Tensor, "B Q"], length: Int[Tensor, "B 1"]
    ) -> Float[Tensor, "B Q D"]:
        if self.branches is None:
            self.branches = _Branches(length, self.cache.get_seq_length(), self.policy.lm.dtype)
        return self.read(tokens, *self.branches.grow(parent))


class _Gpt2:
    """The weights of a plain GPT-2; the parameters themselves, so a later change of theirs is seen."""

    def __init__(self, lm: Any) -> None:
        self.num_heads = lm.config.num_attention_heads
        self.tokens, self.positions = lm.transformer.wte.weight, lm.transformer.wpe.weight
        self.layers = [
            (_norm_of(block.ln_1), _norm_of(block.ln_2), [(one.bias, one.weight) for one in _linear_layers(block)])
            for block in lm.transformer.h
        ]
        self.last_norm = _norm_of(lm.transformer.ln_f)


class _Gpt2Steps:
    """Steps of a plain GPT-2: what `GPT2Model.forward` does, behind the last attention only for tokens that are asked for."""

    def __init__(self, weights: _Gpt2, past: Sequence[KeysValues]) -> None:
        self.weights = weights
        self.two_u = weights.tokens.new_tensor(1.5957691216057308)
        self.keys_values = list(past)
        self.branches: _Branches | _CompiledBranches | None = None

    def read(
        self,
        tokens: Int[Tensor, "B Q"],
        positions: Int[Tensor, "B Q"],
        blocked: Float[Tensor, "B Q S"] | None,
        wanted: Int[Tensor, "B 1"] | None = None,
    ) -> Float[Tensor, "B P D"]:
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
        if self.branches is None:
            width, dtype = self.keys_values[0].shape[3], self.weights.tokens.dtype
            small = self._is_small(tokens)
            self.branches = _CompiledBranches(self.keys_values, length) if small else _Branches(length, width, dtype)
        if isinstance(self.branches, _Branches):
            return self.read(tokens, *self.branches.grow(parent))
        positions, attend = self.branches.grow(parent)
        return self._run(tokens, positions, attend).view(*tokens.shape, -1)

    def _is_small(self, tokens: Int[Tensor, "B Q"]) -> bool:
        """Whether compiled attention, in one thread, takes less time than PyTorch's in all of its threads, as measured on two."""
        weights = self.weights.tokens
        fits = weights.device.type == "cpu" and weights.dtype == torch.float32
        return COMPILES and fits and tokens.numel() * torch.get_num_threads() <= 4096

    def _attend(
        self, shape: torch.Size, mask: Float[Tensor, "B 1 Q S"] | None, behind: list[KeysValues], layer: int, mixed: Tensor
    ) -> Float[Tensor, "P D"]:
        """Attention to all that was read, see `_Attend`; what the layer keeps of it is added to `behind`."""
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
"""Attention of a layer: query, key and value of each token beside each other, to what it sees."""


def _attend_compiled(
    shape: torch.Size, num_heads: int, behind: list[KeysValues], layer: int, mixed: Float[Tensor, "P E"]
) -> Float[Tensor, "P D"]:
    """Attention of prompts that nothing was read before, see `_Attend`."""
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


class _CompiledBranches:
    """Keys and values of branches on a CPU, and attention that looks at nothing but the prompt and the own branch."""

    def __init__(self, prompts: Sequence[KeysValues], length: Int[Tensor, "B 1"]) -> None:
        self.positions, self.length = length, length.flatten().numpy()
        self.prompts = [both.contiguous().numpy() for both in prompts]
        _, num_rows, num_heads, _, dim = prompts[0].shape
        self.rows = np.arange(num_rows)[:, None]
        self.branches = np.empty((len(prompts), num_rows, 1, 0, 2, num_heads, dim), np.float32)

    def grow(self, parent: Int[Tensor, "B Q"]) -> tuple[Int[Tensor, "B Q"], "_Attend"]:
        """Add a token to every branch; returns their positions and their attention."""
        from digr.policy.decoding.cpu import attend_branches  # Numba takes half a second to import

        layers, _, _, depth, *sizes = self.branches.shape
        branches = np.empty((layers, *parent.shape, depth + 1, *sizes), np.float32)
        if depth:
            branches[:, :, :, :depth] = self.branches[:, self.rows, parent.numpy()]
        self.branches, seen = branches, np.empty((*parent.shape, *sizes[1:]), np.float32)
        positions, self.positions = self.positions.expand_as(parent), self.positions + 1
        result = torch.from_numpy(seen.reshape(parent.numel(), -1))  # each layer's is used before the next one's is written

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
        two_u: sqrt(8 / pi), what 2 u begins with beside x.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return functional.gelu(x, approximate="tanh")
    return torch.addcmul(two_u, x, x, value=0.07135481282553248).mul_(x).sigmoid_().mul_(x)
