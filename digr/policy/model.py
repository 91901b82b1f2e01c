"""The policy: a causal language model that writes semantic IDs, normalised over what the trie allows.

The probability of an item is the product of its codes' probabilities, each renormalised over the codes that the trie
allows after the prefix. So the probabilities of all items sum to 1, and training and sampling use the same distribution.
Several completions of a prompt share its computation: they follow it in one sequence, and a mask separates them.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from digr.config.models import Dtype
from digr.config.policy import Attention, PolicyConfig
from digr.models.language_models import add_lora, extend_lm, head_weights, load_lm, save_lm
from digr.models.loading import torch_dtype
from digr.policy.prompts import items_that_fit, read_prompts
from digr.policy.vocabulary import find_sid_tokens, knows_sids_only, scratch_tokenizer, sid_tokens
from digr.sids.trie import ROOT, SidTrie

# transformers takes seconds to import, so it is imported only where models are made
if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class SidPolicy(nn.Module):
    """A Hugging Face causal LM with SID tokens."""

    token_level: Tensor
    token_code: Tensor

    def __init__(self, lm: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        super().__init__()
        self.lm = lm
        self.tokenizer = tokenizer
        vocabulary = find_sid_tokens(tokenizer, lm.config.get_text_config().vocab_size)
        self.level_sizes = vocabulary.level_sizes
        self.register_buffer("token_level", vocabulary.token_level, persistent=False)
        self.register_buffer("token_code", vocabulary.token_code, persistent=False)
        for level, ids in enumerate(vocabulary.token_ids):
            self.register_buffer(f"token_ids_{level}", ids, persistent=False)
        self._head_rows = [_slice_of(ids) for ids in vocabulary.token_ids]
        self._sid_ids = vocabulary.ids
        alone, first = tokenizer("<a_0>")["input_ids"], vocabulary.ids["<a_0"]
        if first not in alone:
            raise ValueError(
                f"policy: the tokenizer does not read <a_0> as one token, but as {alone}; add SID tokens by add_tokens"
            )
        self._before, self._behind = alone[: alone.index(first)], alone[alone.index(first) + 1 :]
        places = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
        self.max_tokens: int = min(tokenizer.model_max_length, places or tokenizer.model_max_length)
        """Longest prompt and completion together."""
        self.gpt2_weights: Any = None
        """Weights of a plain GPT-2, kept by decoding from its first call on; unset again when adapters are added."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.token_level.device

    @cached_property
    def head(self) -> Any:
        """The LM's output head; adapters replace it."""
        return self.lm.get_output_embeddings()

    @property
    def max_history(self) -> int:
        """Most items of a history that the policy reads."""
        return items_that_fit(self.max_tokens, len(self.level_sizes))

    def token_ids(self, level: int) -> Int[Tensor, " K"]:
        """Return the token of each code of a level."""
        return getattr(self, f"token_ids_{level}")

    def tokenize(self, texts: Sequence[str]) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Turn prompts into right-padded token ids and the mask of real tokens; long ones lose their oldest items.

        Raises:
            ValueError: a prompt is too long even with its newest item alone, see `prompts`.
        """
        rows = read_prompts(texts, self._read, self.max_tokens, len(self.level_sizes)).rows
        lengths = np.array([len(row) for row in rows])
        real = np.arange(lengths.max()) < lengths[:, None]
        padded = np.full(real.shape, self.tokenizer.pad_token_id)
        padded[real] = [token for row in rows for token in row]
        return torch.from_numpy(padded).to(self.device), torch.from_numpy(real).to(self.device)

    def _look_up(self, text: str) -> list[int] | None:
        """Return the tokens of a text of SIDs alone, whose tokens do not depend on their neighbours; None for other texts."""
        *words, rest = text.split(">")
        try:
            return None if rest else [*self._before, *(self._sid_ids[word] for word in words), *self._behind]
        except KeyError:
            return None

    def _read(self, texts: list[str]) -> list[list[int]]:
        known = [self._look_up(text) for text in texts]
        others = [text for text, row in zip(texts, known, strict=True) if row is None]
        found = iter(self.tokenizer(others, return_attention_mask=False, verbose=False)["input_ids"] if others else [])
        return [next(found) if row is None else row for row in known]

    def hidden(self, **inputs: object) -> Float[Tensor, "B T D"]:
        """Run the transformer without its output head; keys and values are kept only where `use_cache` asks for it."""
        return self.lm.get_decoder()(**{"use_cache": False} | inputs).last_hidden_state

    def code_logits(self, hidden: Float[Tensor, "*P D"], level: int) -> Float[Tensor, "*P K"]:
        """Compute the logits of one level's codes only."""
        weight, bias, sid_rows = head_weights(self.head)
        ids, start = self._head_rows[level] or self.token_ids(level), sum(self.level_sizes[:level])
        rows = weight[ids] if sid_rows is None else sid_rows[start : start + self.level_sizes[level]]
        return nn.functional.linear(hidden, rows.to(hidden.dtype), None if bias is None else bias[ids]).float()

    def token_logits(self, hidden: Float[Tensor, "*P D"]) -> Float[Tensor, "*P V"]:
        """Compute the logits of the whole vocabulary.

        The head's weights are read directly, as in `code_logits`, without calling its module: under ZeRO-3 all workers must
        call the same modules in each step, but some batches may have no completion in words.
        """
        weight, bias, sid_rows = head_weights(self.head)
        logits = nn.functional.linear(hidden, weight, bias)
        if sid_rows is None:
            return logits.float()
        ids = torch.cat([self.token_ids(level) for level in range(len(self.level_sizes))])
        of_sids = nn.functional.linear(hidden, sid_rows.to(hidden.dtype), None if bias is None else bias[ids])
        return logits.index_copy(-1, ids, of_sids).float()

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Bool[Tensor, "B T"],
        completion_mask: Bool[Tensor, "B T"] | None = None,
        trie: SidTrie | None = None,
        codes: Int[Tensor, "B G L"] | None = None,
    ) -> Float[Tensor, "B T"] | Float[Tensor, "B G L"]:
        """Return log-probabilities of completions.

        With `completion_mask`: log p(token t | tokens before t) where the mask is set, 0 elsewhere; SID tokens are
        renormalised over the codes that the trie allows, other tokens use the full softmax. With `codes`: the same for G
        completions of each prompt, 0 after the end of a shorter SID. Sequences are right-padded.
        """
        if trie is None:
            raise ValueError("policy: a trie is needed to normalise SIDs; pass trie=load_trie(store)")
        if codes is not None:
            return self._group_log_probs(input_ids, attention_mask.bool(), trie, codes)
        assert completion_mask is not None
        return self._sequence_log_probs(input_ids, completion_mask.bool(), trie)

    def _sequence_log_probs(
        self, input_ids: Int[Tensor, "B T"], completion_mask: Bool[Tensor, "B T"], trie: SidTrie
    ) -> Float[Tensor, "B T"]:
        # right padding: real tokens of a causal model never attend to it, so no mask is needed
        hidden = self.hidden(input_ids=input_ids)
        level, code = self.token_level[input_ids], self.token_code[input_ids]
        node = torch.full_like(input_ids, ROOT)  # the node before each token
        for depth in range(1, len(self.level_sizes)):
            row, column = torch.nonzero(level == depth, as_tuple=True)
            node[row, column] = trie.child(node[row, column - 1], code[row, column - 1])
        result = torch.zeros(input_ids.shape, device=input_ids.device)
        for depth in range(len(self.level_sizes)):
            row, column = torch.nonzero(completion_mask & (level == depth), as_tuple=True)
            if len(row):
                mask = trie.allowed_mask(node[row, column], depth)
                log_probs = _masked_log_softmax(self.code_logits(hidden[row, column - 1], depth), mask)
                result[row, column] = log_probs.gather(-1, code[row, column, None]).squeeze(-1)
        row, column = torch.nonzero(completion_mask & (level < 0), as_tuple=True)
        if len(row):
            logits = self.token_logits(hidden[row, column - 1])
            result[row, column] = torch.log_softmax(logits, -1).gather(-1, input_ids[row, column, None]).squeeze(-1)
        return result

    def _group_log_probs(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"], trie: SidTrie, codes: Int[Tensor, "B G L"]
    ) -> Float[Tensor, "B G L"]:
        num_groups, num_levels = codes.shape[1:]
        tree = tree_inputs(self, input_ids, attention_mask, codes[:, :, : num_levels - 1])
        hidden = self.hidden(**tree)
        last = attention_mask.sum(1) - 1
        before = hidden[torch.arange(len(last), device=last.device), last]
        behind = hidden[:, input_ids.shape[1] :].unflatten(1, (num_groups, max(num_levels - 1, 0)))
        node = torch.full_like(codes[:, :, 0], ROOT)
        result = torch.zeros(codes.shape, device=codes.device)
        for level in range(num_levels):
            alive = codes[:, :, level] >= 0
            source = before[:, None].expand(-1, num_groups, -1) if level == 0 else behind[:, :, level - 1]
            mask = trie.allowed_mask(node[alive], level)
            log_probs = _masked_log_softmax(self.code_logits(source[alive], level), mask)
            result[..., level][alive] = log_probs.gather(-1, codes[:, :, level][alive][:, None].long()).squeeze(-1)
            node = torch.where(alive, trie.child(node, codes[:, :, level]), node)
        return result

    def save(self, folder: str | Path) -> None:
        """Write a Hugging Face folder: weights as safetensors with any adapters merged in, config, tokenizer."""
        save_lm(self.lm, folder)
        self.tokenizer.save_pretrained(folder)


def _slice_of(ids: Int[Tensor, " K"]) -> slice | None:
    """Return consecutive ids as a slice, which reads weights without a copy; None for other ids."""
    start, stop = int(ids[0]), int(ids[-1]) + 1
    return slice(start, stop) if ids.tolist() == list(range(start, stop)) else None


def tree_inputs(
    policy: SidPolicy, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"], codes: Int[Tensor, "B G L1"]
) -> dict[str, Tensor]:
    """Put G completions after each prompt, with a mask by which each attends only to the prompt and itself."""
    num_rows, num_groups, depth = codes.shape
    prompt_width, device = input_ids.shape[1], input_ids.device
    tokens = codes.clone()  # depth is 0 at a sample's first level
    for level in range(depth):
        tokens[:, :, level] = policy.token_ids(level)[codes[:, :, level].clamp(min=0)]
    prompt_mask = attention_mask[:, None, :].expand(-1, num_groups * depth, -1)
    own = torch.arange(num_groups * depth, device=device)
    same = (own[:, None] // depth == own // depth) & (own[:, None] >= own) if depth else own.new_zeros(0, 0, dtype=torch.bool)
    causal = torch.ones(prompt_width, prompt_width, dtype=torch.bool, device=device).tril()
    upper = torch.cat([causal, causal.new_zeros(prompt_width, num_groups * depth)], 1).expand(num_rows, -1, -1)
    lower = torch.cat([prompt_mask, same.expand(num_rows, -1, -1)], 2)
    positions = attention_mask.sum(1, keepdim=True) + own % max(depth, 1)
    return {
        "input_ids": torch.cat([input_ids, tokens.flatten(1)], 1),
        "attention_mask": attention_bias(~torch.cat([upper, lower], 1), policy.lm.dtype)[:, None],
        "position_ids": torch.cat([torch.arange(prompt_width, device=device).expand(num_rows, -1), positions], 1),
    }


def attention_bias(is_hidden: Bool[Tensor, "*P"], dtype: torch.dtype) -> Float[Tensor, "*P"]:
    """Turn a mask of hidden positions into the bias that attention adds to its scores."""
    return torch.zeros(is_hidden.shape, dtype=dtype, device=is_hidden.device).masked_fill_(is_hidden, torch.finfo(dtype).min)


def _masked_log_softmax(logits: Float[Tensor, "P K"], mask: Bool[Tensor, "P K"]) -> Float[Tensor, "P K"]:
    if not bool(mask.any(-1).all()):
        raise ValueError(
            "policy: a completion holds a SID that is not in the trie; build policy_examples and trie from one item_sids"
        )
    return torch.log_softmax(logits.masked_fill(~mask, -torch.inf), -1)


def build_scratch_policy(config: PolicyConfig, level_sizes: Sequence[int], seed: int) -> SidPolicy:
    """Make a small GPT-2 style decoder over SID tokens from random weights.

    Args:
        config: the `policy` section (backbone "scratch").
        level_sizes: codes per level, the suffix level included (a fact of `item_sids`).
        seed: for the weights; the global generator does not change.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = scratch_tokenizer(level_sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lm = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_positions=config.max_tokens,
                n_embd=config.hidden_dim,
                n_layer=config.num_layers,
                n_head=config.num_heads,
                activation_function="gelu_pytorch_tanh",
                resid_pdrop=config.dropout,
                embd_pdrop=config.dropout,
                attn_pdrop=config.dropout,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=None,
                use_cache=False,
            )
        )
    return SidPolicy(lm, tokenizer)


def build_policy(
    config: PolicyConfig, level_sizes: Sequence[int], seed: int, code_texts: Sequence[Sequence[str]] | None = None
) -> SidPolicy:
    """Make the configured policy, untrained and without adapters.

    Args:
        seed: for the scratch policy's weights; new tokens of a Hugging Face model use the global generator.
        code_texts: per level and code, the text from which a Hugging Face model's SID token starts, see `codeword_texts`.
    """
    if config.backbone == "scratch":
        return build_scratch_policy(config, level_sizes, seed)
    return SidPolicy(*extend_lm(config, sid_tokens(level_sizes), code_texts))


def adapt(policy: SidPolicy, config: PolicyConfig) -> None:
    """Add LoRA adapters to a Hugging Face policy in place, if configured; otherwise all its weights are trained."""
    if config.lora_rank:
        ids = torch.cat([policy.token_ids(level) for level in range(len(policy.level_sizes))])
        add_lora(policy.lm, config, ids.tolist())
        policy.gpt2_weights = None
        policy.__dict__.pop("head", None)


def checkpoint_activations(policy: SidPolicy) -> None:
    """Switch activation checkpointing on: in training mode activations are recomputed in the backward pass."""
    policy.lm.gradient_checkpointing_enable({"use_reentrant": False})


def train_without_dropout(policy: SidPolicy) -> None:
    """Put a policy into evaluation mode, except the layers with activation checkpointing."""
    for module in policy.eval().modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True  # of the layer itself, not of its submodules


def load_policy(folder: str | Path, device: str = "cpu", dtype: Dtype = "auto", attention: Attention = "sdpa") -> SidPolicy:
    """Load a saved policy, in evaluation mode.

    Args:
        dtype: dtype of the weights. "auto" is bf16 on a GPU and fp32 on a CPU; a scratch policy is small and always uses
            fp32. A policy that is trained further must be loaded in fp32.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    chosen: Dtype = "fp32" if dtype == "auto" and knows_sids_only(tokenizer) else dtype
    lm = load_lm(folder, torch_dtype(chosen, device), attention)
    return SidPolicy(lm, tokenizer).eval().to(device)
