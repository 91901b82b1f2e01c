"""An item with a book as its description costs no more than any other."""

import numpy as np
import pyarrow as pa
import pytest

from digr.config.models import EncoderConfig
from digr.config.policy import PolicyConfig, TasksConfig
from digr.data.ids import build_id_index
from digr.data.texts import item_texts
from digr.interests.prompts import item_requests
from digr.models.encoders import load_encoder
from digr.policy.examples import Sids
from digr.policy.model import build_policy
from digr.policy.tasks import ItemTexts, item_task_examples, plain_text
from digr.policy.training.batches import Texts, pack_sequences
from digr.ranking.phrases import text_pieces
from digr.tables import conform
from tests.policy.toy import LEVEL_SIZES
from tests.tiny_models import make_text_model

BOOK = "a cedar fly rod for trout in rivers. " * 4_000
"""Some 36,000 tokens."""
LONG = 42


@pytest.fixture(params=["description", "title"])
def items(request) -> pa.Table:
    """A hundred items, one of which has the book as its description, or as its title."""
    columns = {"item_id": [f"i{item:02d}" for item in range(100)]}
    columns |= {name: [f"{name} {item}" for item in range(100)] for name in ("title", "description")}
    columns[request.param][LONG] = BOOK
    return conform("items", pa.table(columns), "test")


def test_what_is_asked_and_encoded_of_it_is_as_long_as_of_others(items):
    assert max(map(len, item_texts(items))) == 1200
    requests = item_requests(items, "key", "text", 300)
    assert max(map(len, requests["text"].to_pylist())) == 300 and len(requests) == 100
    pieces = text_pieces(items)
    assert max(map(len, pieces["interest"].to_pylist())) <= 200
    assert np.bincount(pieces["row"].to_numpy())[LONG] <= 5
    encode = load_encoder(EncoderConfig(max_tokens=32))
    vectors = encode([item_texts(items)[LONG], BOOK])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_the_language_model_reads_the_beginning_of_its_title(items, tmp_path):
    make_text_model(tmp_path)
    policy = build_policy(PolicyConfig(backbone="hf", base=str(tmp_path), max_tokens=128), LEVEL_SIZES, 0)
    ids, tasks = items["item_id"].combine_chunks(), TasksConfig()
    sids = Sids(build_id_index(ids), [f"<a_{item % 4}><b_{item // 4 % 4}>" for item in range(100)])
    titles = plain_text(items["title"].combine_chunks(), tasks.max_text_chars)
    rows = item_task_examples(ids, sids, ItemTexts(titles, pa.nulls(100, pa.string())), tasks)
    assert len(rows) == 200
    packed = pack_sequences(policy.tokenizer, [Texts(rows["prompt"].to_pylist(), rows["completion"].to_pylist())], 128)
    assert np.diff(packed.offsets).max() <= 128 and (packed.num_cut_prompts, len(packed.offsets)) == (0, 201)
