"""Interests of your own texts: from key phrases and from a language model's answers, with a ledger that a rerun goes on from."""

# %% a catalogue
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import digr
from digr import ledger

titles = {
    "rod": "Carbon rod for trout fishing in small rivers",
    "fly": "Hand-tied dry fly for trout fishing",
    "pan": "Iron pan for sourdough bread",
    "peel": "Wooden peel for sourdough bread and pizza",
}
items = pa.table({"item_id": list(titles), "title": list(titles.values())})
for name in ("brand", "categories", "description"):
    items = items.append_column(name, pa.nulls(len(items), pa.string()))


# %% any function from texts to unit vectors compares phrases; `load_encoder(EncoderConfig())` gives a sentence encoder
def encode(texts: list[str]) -> np.ndarray:
    """Count letters, in place of a model that takes seconds to load."""
    counts = np.array([[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], float)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


# %% two miners: key phrases that several items share, and a language model, whose answers may be wrapped in anything
def key_phrases(texts: list[str]) -> list[str]:
    """Return one answer per text."""
    counted = digr.count_phrases(list(titles.values()), 3, digr.num_buckets(len(titles)))
    counts = digr.PhraseCounts(counted, num_owners=len(titles))
    return digr.extract_interests(texts, counts, encode, max_words=3, min_owners=2, max_interests=2)


def language_model(texts: list[str]) -> list[str]:
    """Return one answer per text, in place of a model that reads `chat_messages("item", "text", text)`."""
    found = ["weekend trout fishing" if "trout" in text else "baking at home" for text in texts]
    return [f'<think>Who buys it?</think>```json\n[{{"interest": "{one}", "confidence": "90%"}},]\n```' for one in found]


print("asked:", digr.chat_messages("item", "text", titles["rod"])[1]["content"])
print("read as:", digr.parse_response(language_model([titles["rod"]])[0]))

# %% what is in the ledger is not asked again
uri = ledger.open_ledger(digr.Store(tempfile.mkdtemp()))


def ask(catalogue: pa.Table) -> None:
    """Ask both miners what the ledger does not hold yet."""
    for miner, answer in {"phrases": key_phrases, "model": language_model}.items():
        requests = digr.item_requests(catalogue, digr.request_key("item", {"name": miner}), "text", max_text_chars=1200)
        new = requests.filter(pc.invert(ledger.contains(ledger.done_numbers(uri), requests["request_digest"])))
        print(f"{miner}: asked {len(new)} of {len(requests)}")
        version, texts = digr.prompt_version("item", "text"), new["text"].to_pylist()
        ledger.append(uri, ledger.finish_responses(ledger.raw_responses(new, miner, version, "text", response=answer(texts))))


ask(items.slice(0, 3))
ask(items)

# %% one list per item; phrases of both miners that mean the same would be one interest
answers = digr.latest_responses(pq.read_table(uri))
ids = items["item_id"].combine_chunks()
merged = digr.merge_responses(answers, "item", ids, encode, similarity=0.95, max_interests=3)
for row in merged.to_pylist():
    print(row["owner_id"], [(one["interest"], one["miners"]) for one in row["interests"]])
