"""Encode prompts once for all beams, with a bounded cache of encoded prompts for growing histories."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from digr.policy.decoding.gpt2 import Gpt2Steps, Gpt2Weights, is_plain_gpt2
from digr.policy.decoding.steps import DecoderSteps, KeysValues, Steps
from digr.policy.model import SidPolicy, attention_bias


def start_steps(policy: SidPolicy, past: Sequence[KeysValues] = ()) -> Steps:
    """Return the steps of a policy's transformer, starting after cached keys and values of each layer, if any.

    A plain GPT-2 in evaluation mode uses the faster `gpt2` steps, which give the same hidden states.
    """
    if policy.gpt2_weights is None and is_plain_gpt2(policy.lm):
        policy.gpt2_weights = Gpt2Weights(policy.lm)
    if policy.gpt2_weights is None or policy.lm.training:
        return DecoderSteps(policy, past)
    return Gpt2Steps(policy.gpt2_weights, past)


class Context(NamedTuple):
    """Encoded prompts."""

    steps: Steps
    """The transformer after T tokens of each prompt, ready to read branch tokens."""
    length: Int[Tensor, "B 1"]
    """Number of tokens of each prompt; the others are padding."""
    last: Float[Tensor, "B D"]
    """Hidden state of each prompt's last token."""


class CachedPrompt(NamedTuple):
    """One encoded prompt without padding."""

    tokens: list[int]
    keys_values: Float[Tensor, "layers 2 H T C"]
    last: Float[Tensor, " D"]

    @property
    def nbytes(self) -> int:
        """Size of its tensors in bytes."""
        return self.keys_values.nbytes + self.last.nbytes


class ContextCache:
    """The most recently used encoded prompts of one policy, up to a number of bytes.

    A prompt that begins with a cached one, such as a grown history, is encoded only from the end of the cached one, and then
    replaces it. Lists stay the same, and scores differ only by float rounding. The policy's weights must not change. Several
    threads may use the cache.
    """

    def __init__(self, policy: SidPolicy, max_bytes: int) -> None:
        self.policy = policy
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._prompts: OrderedDict[int, CachedPrompt] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Prompts held."""
        return len(self._prompts)

    def find(self, tokens: list[int]) -> CachedPrompt | None:
        """Return the longest cached prompt that is a prefix of `tokens`."""
        keys = _prefix_keys(tokens)
        with self._lock:
            for length in range(len(tokens), 0, -1):
                found = self._prompts.get(keys[length - 1])
                if found is not None and found.tokens == tokens[:length]:
                    self._prompts.move_to_end(keys[length - 1])
                    return found
        return None

    def put(self, prompt: CachedPrompt, grown_from: CachedPrompt | None = None) -> None:
        """Store a prompt instead of the one that it grew from; drop the least recently used prompts if necessary."""
        with self._lock:
            if grown_from is not None:
                self._drop(_prefix_keys(grown_from.tokens)[-1])
            key = _prefix_keys(prompt.tokens)[-1]
            self._drop(key)
            self._prompts[key] = prompt
            self.num_bytes += prompt.nbytes
            while self.num_bytes > self.max_bytes:
                self._drop(next(iter(self._prompts)))

    def _drop(self, key: int) -> None:
        dropped = self._prompts.pop(key, None)
        self.num_bytes -= dropped.nbytes if dropped is not None else 0


def _prefix_keys(tokens: Sequence[int]) -> list[int]:
    """Hash every prefix of a prompt in one pass."""
    keys, key = [], 0
    for token in tokens:
        key = hash((key, token))
        keys.append(key)
    return keys


@torch.inference_mode()
def encode(policy: SidPolicy, prompts: Sequence[str], cache: ContextCache | None = None) -> Context:
    """Encode prompts; cached prefixes are not encoded again.

    Raises:
        ValueError: the cache holds prompts of another policy.
    """
    if cache is not None:
        return _encode_cached(policy, prompts, cache)
    tokens, real = policy.tokenize(prompts)
    steps, length = start_steps(policy), real.sum(1, keepdim=True)
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    # right padding: real tokens of a causal model never attend to it
    last = steps.read(tokens, positions, None, wanted=length - 1)
    return Context(steps, length, last[:, 0])


def _encode_cached(policy: SidPolicy, prompts: Sequence[str], cache: ContextCache) -> Context:
    if cache.policy is not policy:
        raise ValueError("context cache: holds prompts of another policy; make one cache for each policy")
    tokens = [row[keep].tolist() for row, keep in zip(*(part.cpu() for part in policy.tokenize(prompts)), strict=True)]
    found = [cache.find(row) for row in tokens]
    past_lengths = torch.tensor([0 if one is None else len(one.tokens) for one in found], device=policy.device)
    fresh = [torch.tensor(row[length:], dtype=torch.long) for row, length in zip(tokens, past_lengths.tolist(), strict=True)]
    if any(len(one) for one in fresh):
        _read_fresh(policy, tokens, found, past_lengths, fresh, cache=cache)
    rows = [one for one in found if one is not None]
    lengths = torch.tensor([len(row) for row in tokens], device=policy.device)
    return Context(start_steps(policy, _past(rows, lengths)[0]), lengths[:, None], torch.stack([one.last for one in rows]))


def _read_fresh(
    policy: SidPolicy,
    tokens: Sequence[list[int]],
    found: list[CachedPrompt | None],
    past_lengths: Int[Tensor, " B"],
    fresh: Sequence[Int[Tensor, " T"]],
    *,
    cache: ContextCache,
) -> None:
    """Read the tokens after the cached prefixes, and put the whole prompts into `found` and the cache."""
    past, past_real = _past(found, past_lengths)
    steps = start_steps(policy, past)
    new_lengths = torch.tensor([len(one) for one in fresh], device=policy.device)
    new = pad_sequence(list(fresh), batch_first=True).to(policy.device)
    order = torch.arange(new.shape[1], device=policy.device)
    blocked = None
    if past:
        later = (order[:, None] < order).expand(len(new), -1, -1)
        blocked = attention_bias(torch.cat([~past_real[:, None].expand(-1, len(order), -1), later], 2), policy.lm.dtype)
    newest = (new_lengths[:, None] - 1).clamp(min=0)
    hidden = steps.read(new, past_lengths[:, None] + order, blocked, newest)[:, 0]
    added = torch.stack([both[:, :, :, past_real.shape[1] :] for both in steps.keys_values])
    for row, known in enumerate(found):
        if len(fresh[row]):
            ours = added[:, :, row, :, : len(fresh[row])]
            whole = ours.clone() if known is None else torch.cat([known.keys_values, ours], 3)
            grown = CachedPrompt(tokens[row], whole, hidden[row].clone())
            found[row] = grown
            cache.put(grown, known)


def _past(found: Sequence[CachedPrompt | None], lengths: Int[Tensor, " B"]) -> tuple[list[KeysValues], Bool[Tensor, "B T"]]:
    """Batch cached prompts, padded to the longest."""
    width, past = int(lengths.max()), list[KeysValues]()
    known = [(row, one) for row, one in enumerate(found) if one is not None]
    if known:
        layers, _, heads, _, head_dim = known[0][1].keys_values.shape
        padded = known[0][1].keys_values.new_zeros(layers, 2, len(found), heads, width, head_dim)
        for row, one in known:
            padded[:, :, row, :, : len(one.tokens)] = one.keys_values
        past = list(padded)
    return past, torch.arange(width, device=lengths.device) < lengths[:, None]
