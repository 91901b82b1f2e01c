"""Requests to miners: the versioned prompts, the JSON schema of the answer, and the digest that identifies a request.

Whoever changes the words of a prompt must change its version. The version is part of every request's digest, so a new
version asks again, and an old answer is never used for a new question.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from digr.artifacts import digest_of
from digr.data.texts import item_texts
from digr.interests.item_lines import ItemLines, history_texts
from digr.tables import Owner

Modality = Literal["text", "image", "both"]

REQUEST_SCHEMA = pa.schema(
    [
        pa.field("owner", pa.string(), nullable=False),
        pa.field("owner_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("image_uri", pa.string()),
        pa.field("request_digest", pa.string(), nullable=False),
    ]
)
"""One row per request of one miner."""

MAX_PHRASE_CHARS = 80
RESPONSE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reasoning": {"type": "string", "maxLength": 400},
        "interests": {
            "type": "array",
            "minItems": 1,
            "maxItems": 8,
            "items": {
                "type": "object",
                "properties": {
                    "interest": {"type": "string", "minLength": 3, "maxLength": MAX_PHRASE_CHARS},
                    "confidence": {"type": "number", "minimum": 0, "maximum": 1},
                },
                "required": ["interest", "confidence"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["reasoning", "interests"],
    "additionalProperties": False,
}
"""Schema of an answer: reasoning comes before the list, and lengths are bounded so that guided decoding ends."""

PROMPT_VERSIONS: dict[tuple[Owner, Modality], str] = {
    ("item", "text"): "item-text-v1",
    ("item", "image"): "item-image-v1",
    ("item", "both"): "item-both-v1",
    ("user", "text"): "user-text-v3",
}
_RULES = (
    "An interest is a phrase of 3 to 9 lower-case words naming a latent motive, project or usage context that would also "
    "lead the same person to other products. Be specific, actionable and grounded in what you are shown. Never name a "
    "category, a feature, a brand or praise, and claim nothing about personality, health or demographics. Word the same "
    "motive the same way every time.\n"
    'Answer with one JSON object: {"reasoning": "...", "interests": [{"interest": "...", "confidence": 0.9}]}. First the '
    "reasoning, at most 40 words: who uses this, for which job, out of which motive. Then 3 to 5 interests, strongest "
    "first, each with your confidence from 0 to 1 that what you are shown supports it."
)
_TASKS: dict[tuple[Owner, Modality], str] = {
    ("item", "text"): "You read a product's text and name the interests behind buying it.",
    ("item", "image"): (
        "You look at a product's main image, note in the reasoning only what is visible, without guesses about people, and "
        "name the interests behind buying it."
    ),
    ("item", "both"): "You look at a product's main image, read its text and name the interests behind buying it.",
    ("user", "text"): (
        "You read the products a person chose, oldest first, some with interests behind buying them in brackets, and name the "
        "interests that run through this person's choices."
    ),
}


def prompt_modality(owner: Owner, modality: Modality) -> Modality:
    """Return what an owner's prompt shows: text for users, who have no image, and the miner's modality for items."""
    return modality if owner == "item" else "text"


def prompt_version(owner: Owner, modality: Modality) -> str:
    """Return the version of the prompt for owners of this kind and a miner of this modality."""
    return PROMPT_VERSIONS[owner, prompt_modality(owner, modality)]


def chat_messages(owner: Owner, modality: Modality, text: str, image_url: str | None = None) -> list[dict[str, Any]]:
    """Return the chat messages of one request in the OpenAI form.

    If the modality shows images, the user's content is a list of parts for every row. A row with `image_url` None gets the
    text prompt, so that a broken image never loses an owner.

    Args:
        text: the owner's text, already cut to its allowed length.
        image_url: a `data:` address of the image.
    """
    shown: Modality = prompt_modality(owner, modality)
    system = f"{_TASKS[owner, shown if image_url else 'text']}\n{_RULES}"
    heading = "Product" if owner == "item" else "Products chosen, oldest first"
    if shown == "text":
        return _chat(system, f"{heading}:\n{text}")
    if image_url is None:
        return _chat(system, [{"type": "text", "text": f"{heading}:\n{text}"}])
    words = "Name the interests." if shown == "image" else f"{heading}:\n{text}"
    return _chat(system, [{"type": "image_url", "image_url": {"url": image_url}}, {"type": "text", "text": words}])


def _chat(system: str, content: Any) -> list[dict[str, Any]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]


def request_key(owner: Owner, miner: Mapping[str, Any], extra: str = "") -> str:
    """Return the digest of everything that decides an answer, except the owner's content.

    Args:
        miner: the miner's config as JSON values; fields that change only speed or price do not enter the digest.
        extra: anything else that decides an answer, for example the digest of a recording.
    """
    decisive = "kind name model modality max_tokens temperature json_schema max_words min_owners recorded_miner"
    chosen = {name: miner[name] for name in decisive.split() if name in miner}
    chosen |= {name: miner[name] for name in ("reasoning_effort", "extra_body") if miner.get(name)}  # older ledgers have neither
    return digest_of({"miner": chosen, "prompt": prompt_version(owner, miner.get("modality", "text")), "extra": extra})


def _with_digests(owner: Owner, ids: pa.Array, texts: list[str], images: list[str | None], key: str) -> pa.Table:
    prefix = hashlib.sha256(key.encode())
    digests = []
    for owner_id, text, image in zip(ids.to_pylist(), texts, images, strict=True):
        hasher = prefix.copy()
        hasher.update(json.dumps([owner, owner_id, text, image], ensure_ascii=True).encode())
        digests.append(hasher.hexdigest()[:16])
    columns = {"owner": [owner] * len(texts), "owner_id": ids, "text": texts, "image_uri": images, "request_digest": digests}
    return pa.table(columns, schema=REQUEST_SCHEMA)


def item_requests(items: pa.Table, key: str, modality: Modality, max_text_chars: int) -> pa.Table:
    """Return one request per row of `items`, in their order.

    Args:
        key: from `request_key`.
        modality: with "text" the image's address is left out, so that a changed image causes no new request.
    """
    images = items["image_uri"].to_pylist() if modality != "text" else [None] * len(items)
    return _with_digests("item", items["item_id"].combine_chunks(), item_texts(items, max_text_chars), images, key)


def user_requests(histories: pa.Table, items: ItemLines, key: str, max_text_chars: int) -> pa.Table:
    """Return one request per user: a line for each training item but the last, in order; never ids or held-out rows.

    Args:
        histories: rows of the `histories` table, see `history_texts`.
        key: from `request_key`.
    """
    ids, texts = history_texts(histories, items, max_text_chars)
    return _with_digests("user", ids, texts, [None] * len(texts), key)


def interests_known(histories: pa.Table) -> Bool[np.ndarray, " R"]:
    """Return for each row whether a prompt may show its user's interests, which must come only from items before its target.

    This holds for a user's last training row and for validation and test rows, see `history_texts`. The targets of earlier
    training rows are among the items that the interests were mined from.

    Args:
        histories: rows of the `histories` table, all of each user's, in time order.
    """
    train = pc.equal(histories["split"], "train").to_numpy()
    users = histories["user_id"].combine_chunks()
    before_another = np.zeros(len(train), bool)
    before_another[:-1] = train[1:] & pc.equal(users[1:], users[:-1]).to_numpy(zero_copy_only=False)
    return ~(train & before_another)
