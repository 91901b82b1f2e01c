"""Mine interests without a language model: key phrases of the owner's own text.

The embedded default, and the baseline for every claim about mining. A phrase is a run of words that is used by some other
owners' texts but not by most, forms a unit, and is near the whole text by a sentence encoder. Phrases are counted in at most
2^26 hashed buckets, which bounds memory.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int64, UInt32

from digr.models.encoders import Encode

_COMMON = """
a about above after again against all also am an and any are as at be because been before being below between both but by
can could did do does doing down during each etc few for from further get had has have having he her here hers him his how
i if in including into is it its itself just let like made make makes many may me might more most much must my new no nor
not now of off on once one only or other our out over own per please same she should since so some such than that the
their theirs them then there these they this those through to too two under until up upon us use used uses using very via
was we were what when where whether which while who whom why will with within without would you your yours brand category
"""
STOPWORDS = frozenset(_COMMON.split())
_CHUNK = 1024
_SHORTLIST = 12
"""Phrases per owner that are encoded."""
_MIN_UNITY = 0.1
"""Least unity of a phrase; a run of words below it is a fragment of another, or has neighbours by chance."""
_MAX_OWNERS_RATE = 0.2
"""A phrase that a larger share of the owners uses is too common to be an interest."""


class PhraseCounts(NamedTuple):
    """Number of owners whose text has a phrase, by hashed bucket; hash collisions can only make a count too high."""

    owners: UInt32[np.ndarray, " K"]
    num_owners: int


class _Grid(NamedTuple):
    """N-grams of some texts: `buckets[n - 1, p]` is the bucket of the n words from position p, -1 if they are no phrase."""

    words: np.ndarray
    documents: Int64[np.ndarray, " T"]
    buckets: Int64[np.ndarray, "n T"]


def num_buckets(num_owners: int) -> int:
    """Return a number of buckets that makes collisions rare: a power of two, 64 per owner, from 2^16 to 2^26 (256 MB)."""
    return 1 << int(np.clip(np.ceil(np.log2(max(num_owners, 1) * 64)), 16, 26))


def count_phrases(texts: Sequence[str], max_words: int, buckets: int) -> UInt32[np.ndarray, " K"]:
    """Count the texts that contain a phrase, per bucket; counts of parts of a catalogue add up to those of the whole."""
    counts = np.zeros(buckets, np.uint32)
    for start in range(0, len(texts), _CHUNK):
        grid = _ngrams(texts[start : start + _CHUNK], max_words, buckets)
        owners = np.broadcast_to(grid.documents, grid.buckets.shape)[grid.buckets >= 0]
        pairs = np.unique(owners * buckets + grid.buckets[grid.buckets >= 0])
        counts += np.bincount(pairs % buckets, minlength=buckets).astype(np.uint32)
    return counts


def extract_interests(
    texts: Sequence[str], counts: PhraseCounts, encode: Encode, *, max_words: int, min_owners: int, max_interests: int
) -> list[str]:
    """Return one answer per text, in the same JSON form as a language model's.

    Args:
        counts: of the whole catalogue's texts, with the same `max_words`.
        min_owners: owners that must share a phrase, at least 1.
    """
    shortlists: list[list[tuple[str, float]]] = []
    for start in range(0, len(texts), _CHUNK):
        shortlists += _shortlists(texts[start : start + _CHUNK], counts, max_words, min_owners)
    phrases = sorted({phrase for shortlist in shortlists for phrase, _ in shortlist})
    phrase_vectors = dict(zip(phrases, encode(phrases), strict=True)) if phrases else {}
    text_vectors = encode(list(texts)) if phrases else np.zeros((len(texts), 1))
    answers = []
    for shortlist, vector in zip(shortlists, text_vectors, strict=True):
        vectors = np.array([phrase_vectors[phrase] for phrase, _ in shortlist])
        unity = np.array([score for _, score in shortlist])
        chosen = choose_diverse(vectors, vector, unity, max_interests) if shortlist else []
        interests = [{"interest": shortlist[index][0], "confidence": round(score, 4)} for index, score in chosen]
        answers.append(json.dumps({"reasoning": "key phrases of the text", "interests": interests}))
    return answers


def choose_diverse(
    phrases: Float[np.ndarray, "N D"],
    text: Float[np.ndarray, " D"],
    unity: Float[np.ndarray, " N"],
    limit: int,
    diversity: float = 0.3,
) -> list[tuple[int, float]]:
    """Pick phrases one by one, near the text and unlike the earlier ones (maximal marginal relevance, Carbonell 1998).

    Returns (index, strength in [0, 1]) in the order picked; the strength is the mean of the phrase's cosine to the text
    and its unity, without the penalty for similar phrases.
    """
    strength = np.clip((phrases @ text).clip(0, 1) * 0.5 + unity * 0.5, 0, 1)
    nearest = np.zeros(len(phrases))
    left = list(range(len(phrases)))
    chosen: list[tuple[int, float]] = []
    while left and len(chosen) < limit:
        best = max(left, key=lambda index: strength[index] - diversity * nearest[index])
        left.remove(best)
        chosen.append((best, float(strength[best])))
        nearest = np.maximum(nearest, phrases @ phrases[best])
    return chosen


def _ngrams(texts: Sequence[str], max_words: int, buckets: int) -> _Grid:
    """Find all phrases of some texts: runs of words within a sentence, without digits and without a stop word at an end."""
    lowered = pc.utf8_lower(pa.array(texts, pa.string()))
    broken = pc.utf8_trim_whitespace(pc.replace_substring_regex(lowered, r"[^\p{L}\p{N}'\- ]+|'s\b", " | "))
    lists = pc.utf8_split_whitespace(broken)
    documents = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    encoded = pc.list_flatten(lists).dictionary_encode()
    vocabulary = encoded.dictionary.to_pylist()
    codes = encoded.indices.to_numpy()
    hashes = np.array([_word_hash(word) for word in vocabulary], np.uint64)
    allowed = np.array([len(word) > 1 and word.replace("-", "").replace("'", "").isalpha() for word in vocabulary], bool)
    edge = np.array([word not in STOPWORDS and len(word) > 2 and word[0].isalpha() for word in vocabulary], bool)
    grid = np.full((max_words, len(codes)), -1, np.int64)
    hashed, whole = np.zeros(len(codes), np.uint64), np.ones(len(codes), bool)
    for length in range(1, max_words + 1):
        # the last word of each run, shifted to the run's first position
        last = np.roll(codes, 1 - length)
        same = np.roll(documents, 1 - length) == documents
        same[len(codes) - length + 1 :] &= length == 1
        hashed = hashed * np.uint64(0x9E3779B97F4A7C15) + hashes[last] if len(codes) else hashed
        whole = whole & same & allowed[last] if len(codes) else whole
        valid = whole & edge[codes] & edge[last] if len(codes) else whole
        grid[length - 1, valid] = (hashed[valid] >> np.uint64(64 - buckets.bit_length() + 1)).astype(np.int64)
    return _Grid(np.array(vocabulary, object)[codes] if len(codes) else np.empty(0, object), documents, grid)


def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


def _shortlists(texts: Sequence[str], counts: PhraseCounts, max_words: int, min_owners: int) -> list[list[tuple[str, float]]]:
    """Return the best phrases of each text by unity alone, best first."""
    grid = _ngrams(texts, max_words, len(counts.owners))
    owners = np.where(grid.buckets >= 0, counts.owners[grid.buckets], 0).astype(np.float64)
    unity = phrase_unity(owners)
    most = max(_MAX_OWNERS_RATE * counts.num_owners, min_owners)
    candidate = (owners >= min_owners) & (owners <= most) & (unity >= _MIN_UNITY)
    # single words only if a text has no longer phrase
    longer = np.zeros(len(texts), bool)
    longer[grid.documents[candidate[1:].any(0)]] = True
    candidate[0] &= ~longer[grid.documents]
    lengths, positions = np.nonzero(candidate)
    scores = unity[lengths, positions]
    order = np.lexsort((positions, -scores, grid.documents[positions]))
    found: list[list[tuple[str, float]]] = [[] for _ in texts]
    seen: list[set[str]] = [set() for _ in texts]
    for index in order:
        document = grid.documents[positions[index]]
        if len(found[document]) == _SHORTLIST:
            continue
        phrase = " ".join(grid.words[positions[index] : positions[index] + lengths[index] + 1])
        if phrase not in seen[document]:
            seen[document].add(phrase)
            found[document].append((phrase, float(scores[index])))
    return found


def phrase_unity(owners: Float[np.ndarray, "n T"]) -> Float[np.ndarray, "n T"]:
    """Score in [0, 1] how much each run of words is a unit, following C-value (Frantzi 2000).

    A run that mostly occurs inside one longer run is a fragment: its independence is low. A run that is much rarer than a
    run inside it has neighbours by chance: its cohesion is low. Longer units score higher.

    Args:
        owners: `owners[n - 1, p]` is the number of owners of the run of n words at p; 0 if the run is no phrase.
    """
    most, positions = owners.shape
    outer, inner = np.zeros_like(owners), np.zeros_like(owners)
    for short in range(most):
        for longer in range(short + 1, most):
            for shift in range(min(longer - short + 1, positions)):
                # the longer run starts `shift` words before the short one
                ahead, behind = owners[longer, : positions - shift], owners[short, shift:]
                outer[short, shift:] = np.maximum(outer[short, shift:], ahead)
                if short:
                    inner[longer, : positions - shift] = np.maximum(inner[longer, : positions - shift], behind)
    known = np.maximum(owners, 1)
    independence = np.clip(1 - outer / known, 0, 1)
    cohesion = np.minimum(known / np.maximum(inner, known), 1)
    length = np.arange(1, most + 1)[:, None]
    return np.where(owners > 0, independence * cohesion * (1 - 0.5**length), 0)
