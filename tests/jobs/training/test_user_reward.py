"""The reward's term of the user's own interests."""

import pyarrow as pa
import pytest
import torch

from digr import artifacts
from digr.config import build_config
from digr.config.interests import EmbeddingsConfig
from digr.models.encoders import load_encoder
from digr.policy.training.rollouts import Rollouts
from digr.sids.trie import load_trie
from jobs.training.policy_data import load_reward
from tests.nested_interests import nest_rows
from tests.serve.tiny_run import put, write_run

PHRASES = ["trout fishing in mountain rivers", "photos of the night sky", "a cosy cup of tea"]


def test_a_roll_out_earns_what_its_interests_share_with_the_trusted_ones_of_its_user(tmp_path):
    """What users were mined for was no part of the reward."""
    store = write_run(str(tmp_path))
    ids, encode = artifacts.read_table(store, "items")["item_id"].to_pylist(), load_encoder(EmbeddingsConfig().encoder)
    vectors = torch.from_numpy(encode(PHRASES))
    lists = [None if index == 9 else vectors[index % 3].tolist() for index in range(len(ids))]
    columns = {"item_id": ids, "embedding": [[0.0]] * len(ids), "interest_embedding": pa.array(lists, pa.list_(pa.float32()))}
    put(store, "item_embeddings", columns, config={"embeddings": EmbeddingsConfig().model_dump(mode="json")})
    labels = [{"owner_id": item, "interest": PHRASES[index % 3]} for index, item in enumerate(ids)]
    mined = [("u2", PHRASES[0], 1), ("u2", PHRASES[1], 1), ("u2", PHRASES[2], 0), ("u3", PHRASES[2], 0)]
    names = ("owner_id", "interest", "label")
    labels += [{"owner": "user", **dict(zip(names, row, strict=True))} for row in mined]
    put(store, "interest_labels", nest_rows("interest_labels", labels, ids, ["u2", "u3", "u4"]))
    sections = {"run": {"dir": store.root}, "sids": {"level_sizes": "auto"}, "interests": {"owners": ["item", "user"]}}
    config = build_config(sections | {"grpo": {"reward": {"user_interest": 0.2}}}, where="test")

    trie, users = load_trie(store), ["u2", "u3", "u4", "u2"]
    places = torch.tensor([[trie.item_ids.to_pylist().index(ids[item]) for item in (0, 1, 2, 9)]] * len(users))
    rollouts, targets = Rollouts(trie.codes[places], places), places[:, 0]
    found = load_reward(config, store, trie, torch.device("cpu"), users)(rollouts, targets, None, users)
    mean = torch.nn.functional.normalize(vectors[0] + vectors[1], dim=0)
    cosine = [*(vectors @ mean).clamp(min=0).tolist(), 0.0]
    assert cosine[0] > cosine[2]
    expected = torch.tensor([cosine, [0.0] * 4, [0.0] * 4, cosine])
    torch.testing.assert_close(found.terms["user_interest"], expected, atol=1e-5, rtol=0)
    unweighted = build_config(sections, where="test")
    plain = load_reward(unweighted, store, trie, torch.device("cpu"), users)(rollouts, targets, None, users)
    assert not plain.terms["user_interest"].any()
    torch.testing.assert_close(found.total - plain.total, 0.2 * expected, atol=1e-5, rtol=0)


def test_interests_of_users_that_were_not_mined_are_no_choice():
    for change in ({"grpo": {"reward": {"user_interest": 0.2}}}, {"policy": {"backbone": "hf", "prompt_interests": 2}}):
        with pytest.raises(ValueError, match=r"_interests? = 0?\.?2 reads users' interests, .*add \"user\" to it"):
            build_config({"run": {"dir": "x"}} | change, where="test")
    with pytest.raises(ValueError, match='prompt_interests = 2 needs backbone = "hf"; a scratch policy reads no words'):
        build_config({"run": {"dir": "x"}, "policy": {"prompt_interests": 2}}, where="test")
