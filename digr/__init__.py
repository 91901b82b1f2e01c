"""Deep-interest generative recommendation: the parts that others adopt alone, by one name each.

A part is imported when it is asked for, so `import digr` takes milliseconds and loads neither PyTorch nor Arrow; no part needs
Ray. `examples/` shows each group of them at work: tries and search, interests and their ledger, semantic IDs, metrics.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from digr.artifacts import Store
    from digr.config import Config, apply_overrides, build_config, find_config, load_config
    from digr.config.models import EncoderConfig
    from digr.config.sids import SidsConfig
    from digr.evaluation.metrics import evaluate_ranks, target_ranks
    from digr.evaluation.resampling import resample_users, two_way_errors
    from digr.interests import ledger
    from digr.interests.extractive import PhraseCounts, count_phrases, extract_interests, num_buckets
    from digr.interests.merging import latest_responses, merge_responses
    from digr.interests.parsing import Parsed, parse_response
    from digr.interests.prompts import RESPONSE_SCHEMA, chat_messages, item_requests, prompt_version, request_key
    from digr.models.encoders import Encode, load_encoder
    from digr.policy.decoding.choosing import Frontier, first_beams, keep_best, next_beams
    from digr.policy.decoding.search import Beams, Ranking, Recommendation, beam_search, rank_items, recommend
    from digr.policy.model import SidPolicy
    from digr.sids.assignment import SidAssignment, assign_sids
    from digr.sids.diagnostics import collision_rate, describe_sids
    from digr.sids.fitting import Quantiser, fit_quantiser, load_quantiser, save_quantiser
    from digr.sids.trie import SidTrie, build_trie, load_trie

__all__ = [
    "RESPONSE_SCHEMA",
    "Beams",
    "Config",
    "Encode",
    "EncoderConfig",
    "Frontier",
    "Parsed",
    "PhraseCounts",
    "Quantiser",
    "Ranking",
    "Recommendation",
    "SidAssignment",
    "SidPolicy",
    "SidTrie",
    "SidsConfig",
    "Store",
    "__version__",
    "apply_overrides",
    "assign_sids",
    "beam_search",
    "build_config",
    "build_trie",
    "chat_messages",
    "collision_rate",
    "count_phrases",
    "describe_sids",
    "evaluate_ranks",
    "extract_interests",
    "find_config",
    "first_beams",
    "fit_quantiser",
    "item_requests",
    "keep_best",
    "latest_responses",
    "ledger",
    "load_config",
    "load_encoder",
    "load_quantiser",
    "load_trie",
    "merge_responses",
    "next_beams",
    "num_buckets",
    "parse_response",
    "prompt_version",
    "rank_items",
    "recommend",
    "request_key",
    "resample_users",
    "save_quantiser",
    "target_ranks",
    "two_way_errors",
]

__version__ = "0.2.0"

_PARTS = {
    "digr.artifacts": "Store",
    "digr.config": "Config apply_overrides build_config find_config load_config",
    "digr.config.models": "EncoderConfig",
    "digr.config.sids": "SidsConfig",
    "digr.evaluation.metrics": "evaluate_ranks target_ranks",
    "digr.evaluation.resampling": "resample_users two_way_errors",
    "digr.interests": "ledger",
    "digr.interests.extractive": "PhraseCounts count_phrases extract_interests num_buckets",
    "digr.interests.merging": "latest_responses merge_responses",
    "digr.interests.parsing": "Parsed parse_response",
    "digr.interests.prompts": "RESPONSE_SCHEMA chat_messages item_requests prompt_version request_key",
    "digr.models.encoders": "Encode load_encoder",
    "digr.policy.decoding.choosing": "Frontier first_beams keep_best next_beams",
    "digr.policy.decoding.search": "Beams Ranking Recommendation beam_search rank_items recommend",
    "digr.policy.model": "SidPolicy",
    "digr.sids.assignment": "SidAssignment assign_sids",
    "digr.sids.diagnostics": "collision_rate describe_sids",
    "digr.sids.fitting": "Quantiser fit_quantiser load_quantiser save_quantiser",
    "digr.sids.trie": "SidTrie build_trie load_trie",
}
"""Module -> its parts, the same as type checkers see above."""
_HOMES = {part: module for module, parts in _PARTS.items() for part in parts.split()}


def __getattr__(name: str) -> object:
    """Import a part on its first use, as `from module import part` does."""
    if name not in _HOMES:
        raise AttributeError(f"module 'digr' has no attribute {name!r}")
    part = globals()[name] = getattr(__import__(_HOMES[name], fromlist=[name]), name)
    return part


def __dir__() -> list[str]:
    """List all parts, also those that are not imported yet."""
    return sorted({*globals(), *__all__})
