"""Run a policy's transformer for decoding: it reads prompts, then the tokens of branches after them, one by one.

Any Hugging Face decoder runs through its own `forward`. `gpt2` does the same for a plain GPT-2 in less time.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from digr.policy.model import SidPolicy, attention_bias

KeysValues = Float[Tensor, "2 B H S C"]
"""Keys and values of one layer."""


class Steps(Protocol):
    """A transformer with the tokens read so far: prompts, then branches after each, which share its keys and values."""

    @property
    def keys_values(self) -> Sequence[KeysValues]:
        """Return every layer's keys and values of the prompts; call it before the first branch."""

    def read(
        self,
        tokens: Int[Tensor, "B Q"],
        positions: Int[Tensor, "B Q"],
        blocked: Float[Tensor, "B Q S"] | None,
        wanted: Int[Tensor, "B 1"] | None = None,
    ) -> Float[Tensor, "B P D"]:
        """Read more tokens of the prompts and return their hidden states.

        Args:
            positions: position of each token in its sequence.
            blocked: the `attention_bias` of each new token to earlier and new ones; None means plain causal attention without
                earlier tokens.
            wanted: index of the one new token of each row whose state is returned; None for all.
        """

    def branch(
        self, tokens: Int[Tensor, "B Q"], parent: Int[Tensor, "B Q"], length: Int[Tensor, "B 1"]
    ) -> Float[Tensor, "B Q D"]:
        """Read one more token of every branch, which attends to its prompt and its branch; return the hidden states.

        Args:
            parent: index of the branch of the last call that each new branch continues; 0 at the first call, for the prompt.
            length: tokens of each prompt; later ones are padding.
        """


class BranchBias:
    """The attention bias by which branches attend only to their prompt and their own tokens."""

    def __init__(self, length: Int[Tensor, "B 1"], width: int, dtype: torch.dtype) -> None:
        self.positions = length
        self.blocked = attention_bias(torch.arange(width, device=length.device) >= length[..., None], dtype)

    def grow(self, parent: Int[Tensor, "B Q"]) -> tuple[Int[Tensor, "B Q"], Float[Tensor, "B Q S"]]:
        """Add a token to every branch; return positions and the bias that hides other branches."""
        num_rows, width = parent.shape
        before = self.blocked.gather(1, parent[..., None].expand(-1, -1, self.blocked.shape[2]))
        others = before.new_full((width, width), torch.finfo(before.dtype).min).fill_diagonal_(0)
        positions, self.positions = self.positions.expand(-1, width), self.positions + 1
        self.blocked = torch.cat([before, others.expand(num_rows, -1, -1)], 2)
        return positions, self.blocked


class DecoderSteps:
    """Steps of any Hugging Face decoder."""

    def __init__(self, policy: SidPolicy, past: Sequence[KeysValues]) -> None:
        from transformers import DynamicCache

        self.policy, self.cache = policy, DynamicCache()
        self.branches: BranchBias | None = None
        for layer, (keys, values) in enumerate(past):
            self.cache.update(keys, values, layer)

    @property
    def keys_values(self) -> list[KeysValues]:
        """Return every layer's keys and values of the prompts."""
        layers: list[Any] = self.cache.layers
        return [torch.stack([layer.keys, layer.values]) for layer in layers]

    def read(
        self,
        tokens: Int[Tensor, "B Q"],
        positions: Int[Tensor, "B Q"],
        blocked: Float[Tensor, "B Q S"] | None,
        wanted: Int[Tensor, "B 1"] | None = None,
    ) -> Float[Tensor, "B P D"]:
        """Read more tokens of the prompts, see `Steps`."""
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
        """Read one more token of every branch, see `Steps`."""
        if self.branches is None:
            self.branches = BranchBias(length, self.cache.get_seq_length(), self.policy.lm.dtype)
        return self.read(tokens, *self.branches.grow(parent))
