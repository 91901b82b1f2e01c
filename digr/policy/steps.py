"""Running a policy's transformer step by step behind a growing cache of keys and values, for decoding.

Any Hugging Face decoder runs through its own `forward`. A plain GPT-2, which the `scratch` backbone is, runs through the
same operations written out on the same weights: at fifty tokens of 128 numbers half of its `forward` is Python around them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from digr.policy.model import SidPolicy, blocked_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

KeysValues = Float[Tensor, "2 B H S C"]
"""Keys and values of one layer."""


class Steps(Protocol):
    """A transformer and what it has read so far, as keys and values."""

    @property
    def keys_values(self) -> Sequence[KeysValues]:
        """What every layer keeps of the tokens read so far."""

    def __call__(
        self,
        tokens: Int[Tensor, "B Q"],
        positions: Int[Tensor, "B Q"],
        blocked: Float[Tensor, "B Q S"] | None,
        wanted: Int[Tensor, "B 1"] | None = None,
    ) -> Float[Tensor, "B P D"]:
        """Read more tokens and return their hidden states.

        Args:
            positions: place of each token in its own sequence.
            blocked: `blocked_of` the tokens read before and now that each new token does not see; None if none was read
                before and each sees the ones up to itself.
            wanted: the one new token of each row whose state is asked for; None for all.
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


class _AnySteps:
    """Steps of any Hugging Face decoder."""

    def __init__(self, policy: SidPolicy, past: Sequence[KeysValues]) -> None:
        from transformers import DynamicCache

        self.policy, self.cache = policy, DynamicCache()
        for layer, (keys, values) in enumerate(past):
            self.cache.update(keys, values, layer)

    @property
    def keys_values(self) -> list[KeysValues]:
        layers: list[Any] = self.cache.layers
        return [torch.stack([layer.keys, layer.values]) for layer in layers]

    def __call__(
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
    """Steps of a plain GPT-2: what `GPT2Model.forward` does, in the last layer only for the tokens that are asked for."""

    def __init__(self, weights: _Gpt2, past: Sequence[KeysValues]) -> None:
        self.weights = weights
        self.two_u = weights.tokens.new_tensor(1.5957691216057308)
        self.keys_values = list(past)

    def __call__(
        self,
        tokens: Int[Tensor, "B Q"],
        positions: Int[Tensor, "B Q"],
        blocked: Float[Tensor, "B Q S"] | None,
        wanted: Int[Tensor, "B 1"] | None = None,
    ) -> Float[Tensor, "B P D"]:
        (num_rows, num_tokens), behind, weights = tokens.shape, list[KeysValues](), self.weights
        state = weights.tokens.index_select(0, tokens.flatten()) + weights.positions.index_select(0, positions.flatten())
        mask = None if blocked is None else blocked[:, None]
        for layer, (norm_1, norm_2, (mix, out, up, down)) in enumerate(weights.layers):
            mixed = torch.addmm(mix[0], torch.layer_norm(state, *norm_1), mix[1]).view(
                num_rows, num_tokens, 3, weights.num_heads, -1
            )
            query, newest = mixed[:, :, 0].transpose(1, 2), mixed[:, :, 1:].permute(2, 0, 3, 1, 4)
            both = torch.cat([self.keys_values[layer], newest], 3) if self.keys_values else newest
            keys, values = both
            behind.append(both)
            if wanted is not None and layer + 1 == len(weights.layers):
                query = query.gather(2, wanted[:, None, :, None].expand(-1, weights.num_heads, -1, query.shape[3]))
                state = state.view(num_rows, num_tokens, -1).gather(1, wanted[..., None].expand(-1, -1, state.shape[1]))[:, 0]
                mask, num_tokens = _mask_of(mask, wanted, keys), 1
            seen = functional.scaled_dot_product_attention(query, keys, values, mask, is_causal=mask is None)
            state = torch.addmm(out[0], seen.transpose(1, 2).reshape(state.shape), out[1]).add_(state)
            wide = _tanh_gelu(torch.addmm(up[0], torch.layer_norm(state, *norm_2), up[1]), self.two_u)
            state = torch.addmm(down[0], wide, down[1]).add_(state)
        self.keys_values = behind
        return torch.layer_norm(state, *weights.last_norm).view(num_rows, num_tokens, -1)


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


def _mask_of(
    mask: Float[Tensor, "B 1 Q S"] | None, wanted: Int[Tensor, "B 1"], keys: Float[Tensor, "B H S C"]
) -> Float[Tensor, "B 1 1 S"]:
    """Return the mask's row of each wanted token; the causal one where there is no mask."""
    if mask is None:
        return blocked_of(torch.arange(keys.shape[2], device=wanted.device) > wanted[..., None], keys.dtype)[:, None]
    return mask.gather(2, wanted[:, None, :, None].expand(-1, -1, -1, keys.shape[2]))
