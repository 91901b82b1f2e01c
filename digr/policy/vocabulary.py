"""The tokens of semantic IDs, in a real Hugging Face tokenizer for both backbones.

A code is one token: `<a_12>` is code 12 of the first level, `<b_3>` code 3 of the second. Only items that collide have a
code of the suffix level, which comes last.
"""

import re
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, BOS, UNKNOWN = "<pad>", "<bos>", "<unk>"
USER_INTERESTS = "User interests: "
_SID_TOKEN = re.compile(r"<([a-z])_(\d+)>")


class SidVocabulary(NamedTuple):
    """Ids of the SID tokens in a tokenizer's vocabulary."""

    level_sizes: tuple[int, ...]
    token_ids: tuple[Int[Tensor, " K"], ...]
    """Per level, the token of each code."""
    token_level: Int[Tensor, " V"]
    """Per token, its level; -1 for other tokens."""
    token_code: Int[Tensor, " V"]
    """Per token, its code; -1 for other tokens."""
    ids: dict[str, int]
    """Id of each SID token, by its text without the final `>`."""


def sid_token(level: int, code: int) -> str:
    """Return the token of a code, for example `<c_7>` for level 2."""
    return f"<{string.ascii_lowercase[level]}_{code}>"


def sid_tokens(level_sizes: Sequence[int]) -> list[str]:
    """Return all SID tokens, level by level; at most 26 levels."""
    return [sid_token(level, code) for level, size in enumerate(level_sizes) for code in range(size)]


def sid_texts(codes: Int[np.ndarray, "N L"]) -> list[str]:
    """Write SIDs as text; -1 ends a shorter one."""
    return ["".join(sid_token(level, code) for level, code in enumerate(row) if code >= 0) for row in codes.tolist()]


def history_prompt(sids: Sequence[str], interests: str | None = None) -> str:
    """Return the prompt of a history: its user's interests, if any, then the SIDs, oldest first; the next SID completes it."""
    return (f"{USER_INTERESTS}{interests}\n" if interests else "") + "".join(sids)


def scratch_tokenizer(level_sizes: Sequence[int]) -> "PreTrainedTokenizerFast":
    """Make a tokenizer that knows SID tokens only and puts one `<bos>` before each prompt."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([PAD, BOS, UNKNOWN, *sid_tokens(level_sizes)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Split(Regex(r"<[^<>]*>"), "isolated")
    tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, unk_token=UNKNOWN)


def knows_sids_only(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a tokenizer belongs to a scratch policy, which knows no words."""
    return isinstance(tokenizer.backend_tokenizer.model, WordLevel)


def find_sid_tokens(tokenizer: "PreTrainedTokenizerBase", vocabulary_size: int) -> SidVocabulary:
    """Locate the SID tokens of a tokenizer.

    Raises:
        ValueError: the tokenizer has no SID tokens, or a level lacks a code.
    """
    found: dict[int, dict[int, int]] = {}
    for token, index in tokenizer.get_vocab().items():
        if match := _SID_TOKEN.fullmatch(token):
            found.setdefault(ord(match[1]) - ord("a"), {})[int(match[2])] = index
    if not found or set(found) != set(range(len(found))) or any(set(level) != set(range(len(level))) for level in found.values()):
        raise ValueError("policy: the tokenizer has no complete set of SID tokens (<a_0>, <a_1>, ..., <b_0>, ...)")
    words = {sid_token(level, code)[:-1]: index for level, codes in found.items() for code, index in codes.items()}
    token_level = torch.full((vocabulary_size,), -1)
    token_code = torch.full((vocabulary_size,), -1)
    token_ids = []
    for level in range(len(found)):
        ids = torch.tensor([found[level][code] for code in range(len(found[level]))])
        token_level[ids], token_code[ids] = level, torch.arange(len(ids))
        token_ids.append(ids)
    return SidVocabulary(tuple(len(ids) for ids in token_ids), tuple(token_ids), token_level, token_code, words)
