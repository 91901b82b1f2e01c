"""Running a policy's transformer for decoding: it reads prompts, then one token after the other of branches behind them.

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
            blocked: the `attention_bias` of each new token to those read before and now; None if none was read before and
                each sees the ones up to itself.
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


class BranchBias:
    """What branches see of their prompt and of each other, for attention over all of it."""

    def __init__(self, length: Int[Tensor, "B 1"], width: int, dtype: torch.dtype) -> None:
        self.positions = length
        self.blocked = attention_bias(torch.arange(width, device=length.device) >= length[..., None], dtype)

    def grow(self, parent: Int[Tensor, "B Q"]) -> tuple[Int[Tensor, "B Q"], Float[Tensor, "B Q S"]]:
        """Add a token to every branch; returns their positions and the bias of what each does not see."""
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
        """Return what every layer keeps of the prompts."""
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
