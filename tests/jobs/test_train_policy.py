"""SFT and GRPO jobs on a tiny run: two DeepSpeed workers, resume after a kill, equality with one plain process."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import Config, apply_overrides, build_config
from digr.policy.decoding.search import recommend
from digr.policy.model import load_policy
from digr.sids.trie import load_trie
from jobs import recommend as recommend_job
from jobs import train_grpo, train_sft
from jobs.runtime.session import Options
from tests.jobs.training.zero_workers import SIZES
from tests.nested_interests import nest_rows
from tests.patience import wait_until
from tests.tiny_models import make_text_model

pytestmark = pytest.mark.ray

NUM_ITEMS, NUM_USERS = 40, 60
SETTINGS = {
    "data": {"max_history": 8},
    "sids": {"level_sizes": [4, 4, 4]},
    "policy": {"hidden_dim": 32, "num_layers": 1, "num_heads": 2, "max_tokens": 64},
    "train": {"num_workers": 2, "zero_stage": 1},
    "sft": {"lr": 1e-2, "batch_tokens": 128},
    "grpo": {"steps": 6, "prompts_per_step": 16, "group_size": 8, "eval_every_steps": 3, "lr": 1e-3},
}


def _commit(store: Store, name: str, table: pa.Table, **facts: object) -> None:
    artifacts.begin(store, name)
    artifacts.write_table(store, name, table)
    artifacts.commit(store, Manifest(name=name, rows=len(table), facts=facts))


def _histories() -> pa.Table:
    """Users who buy items in a row, of starts and lengths of their own; the last two items held out."""
    rows = []
    for user in range(NUM_USERS):
        length = 5 + user % 4
        items = [f"i{(user * 7 + step) % NUM_ITEMS:02d}" for step in range(length)]
        for at in range(1, length):
            split = {length - 1: "test", length - 2: "valid"}.get(at, "train")
            rows.append({"example_id": f"u{user:02d}-{at}", "user_id": f"u{user:02d}", "split": split})
            rows[-1] |= {"history": items[:at], "target": items[at]}
    return pa.Table.from_pylist(rows)


def _make_run(folder: Path) -> Config:
    """Write artifacts up to the semantic IDs by hand."""
    store, rng = Store(str(folder / "run")), np.random.default_rng(0)
    ids = [f"i{item:02d}" for item in range(NUM_ITEMS)]
    codes = [[item % 4, item // 4 % 4, item // 16] for item in range(NUM_ITEMS)]
    vectors = rng.normal(size=(NUM_ITEMS, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    _commit(store, "histories", _histories())
    facts = {"level_sizes": [4, 4, 4], "usage_rate": [1.0, 1.0, 0.75]}
    _commit(store, "item_sids", pa.table({"item_id": ids, "codes": pa.array(codes, pa.list_(pa.int32()))}), **facts)
    needs = [{"owner_id": item, "interest": f"need {place % 4}"} for place, item in enumerate(ids)]
    users = sorted(set(_histories()["user_id"].to_pylist()))
    needs.append({"owner": "user", "owner_id": "u00", "interest": "need 3"})
    quality = [0.5] * (len(ids) + len(users))
    _commit(store, "interest_labels", nest_rows("interest_labels", needs, ids, users, quality))
    lists = [None if index % 5 == 0 else row.tolist() for index, row in enumerate(vectors)]
    columns = {"item_id": ids, "embedding": vectors.tolist(), "interest_embedding": lists}
    _commit(store, "item_embeddings", pa.table(columns))
    return build_config({"run": {"dir": str(folder / "run")}, **SETTINGS}, where="test")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Artifacts up to the semantic IDs, of this test alone."""
    return _make_run(tmp_path)


# checkpoints between two validations of four epochs each, and between two epochs; the policy reads three items, histories have up
# to seven: a scratch policy, which has a position for each of `max_tokens` tokens, raised IndexError while decoding
LONG = {
    "sft.epochs": 16,
    "sft.eval_every_epochs": 4,
    "sft.checkpoint_every_steps": 4,
    "sft.batch_tokens": 256,
    "sft.patience": 99,
    "policy.max_tokens": 14,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> tuple[Config, dict]:
    """A run that two DeepSpeed workers have fine-tuned without interruption, and the summary of the job."""
    config = apply_overrides(_make_run(tmp_path_factory.mktemp("whole")), LONG)
    return config, train_sft.run(config, Options())


def _metrics(config: Config, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(config.run.dir) / name / "metrics.jsonl").read_text().splitlines()]


def test_two_deepspeed_workers_train_the_policy_and_grpo_refines_it(whole):
    config, summary = whole
    facts = summary["facts"]["policy_sft"]
    assert facts["epochs"] == 16 and facts["num_valid"] == 60
    store = Store(config.run.dir)
    assert len(artifacts.list_parts(store.uri("policy_examples"))) == 1  # of which each worker reads half
    examples = artifacts.read_table(store, "policy_examples")
    assert examples["split"].value_counts().to_pylist() == [{"values": "train", "counts": 90}, {"values": "valid", "counts": 60}]
    losses = [record["loss"] for record in _metrics(config, "policy_sft")]
    assert losses[-1] < 0.8 * losses[0]
    folder = Path(config.run.dir) / "policy_sft"
    assert load_policy(folder).level_sizes == (4, 4, 4)
    assert list((folder / "tensorboard").glob("events.*"))
    assert train_sft.run(config, Options())["status"] == "skipped"

    facts = train_grpo.run(config, Options())["facts"]["policy_grpo"]
    assert facts["steps"] == 6 and facts["num_cut_histories"] > 0
    assert facts["valid_ndcg@10"] >= facts["sft_valid_ndcg@10"]
    records = _metrics(config, "policy_grpo")
    assert records[0]["ndcg@10"] == pytest.approx(summary["facts"]["policy_sft"]["valid_ndcg@10"])
    assert {"reward/exact", "reward/interest", "dead_group_rate", "kl", "rollout_seconds"} <= records[1].keys()
    samples = (Path(config.run.dir) / "policy_grpo" / "rollouts.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in samples] == [3] * 4 + [6] * 4
    load_policy(Path(config.run.dir) / "policy_grpo")


def test_histories_longer_than_the_policy_reads_are_cut_and_counted(whole):
    config, summary = whole
    store = Store(config.run.dir)
    facts, histories = artifacts.require(store, "policy_examples").facts, artifacts.read_table(store, "histories")
    assert facts["max_history"] == 3
    lengths = pc.list_value_length(histories.filter(pc.not_equal(histories["split"], "test"))["history"])
    assert facts["num_cut_histories"] == pc.sum(pc.greater(lengths, 3)).as_py() > 0
    assert summary["facts"]["policy_sft"]["num_cut_prompts"] == 0, "sequences are made as short as the policy reads"


def test_an_hf_backbone_learns_text_tasks_with_lora_under_zero_3_and_ends_as_a_plain_model(config, tmp_path, ray_local):
    """A search of one worker under ZeRO-3 waited for the other, and a head shared with the input had no rows to read."""
    store = Store(config.run.dir)
    ids = [f"i{item:02d}" for item in range(NUM_ITEMS)]
    _commit(store, "items", pa.table({"item_id": ids, "title": [f"Thing {item % 7} of {item % 4}" for item in range(NUM_ITEMS)]}))
    base = str(make_text_model(tmp_path / "base", tie_word_embeddings=True, **SIZES))
    choices = {
        "interests.owners": ["item", "user"],
        "policy.backbone": "hf",
        "policy.base": base,
        "policy.lora_rank": 4,
        "tasks.sid_to_title": 0.5,
    }
    choices |= {
        "policy.max_tokens": 64,
        "train.gradient_checkpointing": True,
        "train.zero_stage": 3,
        "sft.lr": 3e-3,
        "sft.epochs": 3,
        "sft.accumulate": 2,
        "grpo.accumulate": 3,
        "grpo.steps": 2,
        "grpo.eval_every_steps": 2,
        "grpo.prompts_per_step": 12,
        "grpo.group_size": 4,
        "sft.batch_tokens": 1024,
    }
    config = apply_overrides(config, choices | {"sft.eval_every_epochs": 1, "sft.patience": 99})
    facts = train_sft.run(config, Options())["facts"]["policy_sft"]
    assert facts["epochs"] == 3 and facts["num_valid"] == NUM_USERS
    assert facts["num_cut_prompts"] > 0, "seven titles of a dozen tokens each are more than 64"
    assert "model policy.base" in artifacts.require(store, "policy_sft").inputs
    examples = artifacts.read_table(store, "policy_examples")
    tasks = {row["values"]: row["counts"] for row in examples["task"].value_counts().to_pylist()}
    items = {"title_to_sid", "sid_to_title", "interest_to_sid", "sid_to_interest"}
    assert tasks == {"sequence": 2 * NUM_USERS, "history_to_title": NUM_USERS, "titles_to_sid": NUM_USERS} | {
        "user_interest_to_sid": 1
    } | dict.fromkeys(items, NUM_ITEMS)
    losses = [record["loss"] for record in _metrics(config, "policy_sft")]
    assert losses[-1] < losses[0]
    facts = train_grpo.run(config, Options())["facts"]["policy_grpo"]
    # adapters that were folded in round otherwise, so near-equal scores may change places
    assert facts["steps"] == 2
    assert facts["sft_valid_ndcg@10"] == pytest.approx(_metrics(config, "policy_sft")[-1]["best"], abs=0.01)
    assert _metrics(config, "policy_grpo")[1]["kl"] == pytest.approx(0, abs=1e-6), "the reference is the policy without adapters"
    trie, prompts = load_trie(store), examples.filter(pc.equal(examples["split"], "valid"))["prompt"].to_pylist()[:3]
    for name in ("policy_sft", "policy_grpo"):
        policy = load_policy(Path(config.run.dir) / name)
        assert not any("lora_" in name for name, _ in policy.named_parameters())
        assert [len(set(found.item_ids)) for found in recommend(policy, trie, prompts, 10, 10)] == [10, 10, 10]


def test_a_users_interests_reach_the_prompts_of_training_and_of_recommendation_and_the_reasons(config, tmp_path, ray_local):
    """What users were mined for changed nothing that was recommended."""
    store = Store(config.run.dir)
    ids = [f"i{item:02d}" for item in range(NUM_ITEMS)]
    _commit(store, "items", pa.table({"item_id": ids, "title": ids}))
    choices = {"interests.owners": ["item", "user"], "policy.backbone": "hf", "policy.prompt_interests": 3}
    choices |= {"policy.base": str(make_text_model(tmp_path / "base", **SIZES)), "policy.max_tokens": 96}
    choices |= {"train.num_workers": 1, "train.engine": "plain", "sft.batch_tokens": 1024, "sft.epochs": 1}
    choices |= {"decoding.beam_width": 20, "decoding.k": 10, "tasks.titles_to_sid": 0, "grpo.enabled": False}
    config = apply_overrides(config, choices)
    train_sft.run(config, Options())
    examples = artifacts.read_table(store, "policy_examples")
    added = examples.filter(pc.equal(examples["task"], "interest_history_to_sid"))["prompt"].to_pylist()
    texts = ["".join(f"<{level}_{code}>" for level, code in zip("abc", (item, 0, 0), strict=True)) for item in range(3)]
    assert added == ["User interests: need 3\n" + "".join(texts[:2])]
    shown = examples.filter(pc.equal(examples["split"], "valid")).slice(0, 3)
    assert shown["prompt"][0].as_py() == "User interests: need 3\n" + "".join(texts)
    # at inference the number is the trained policy's, whatever the config says by then
    recommend_job.run(apply_overrides(config, {"policy.prompt_interests": 0, "ranking.enabled": False}), Options())
    found = artifacts.read_table(store, "recommendations/sft_valid").slice(0, 3).to_pylist()
    policy, trie = load_policy(Path(config.run.dir) / "policy_sft"), load_trie(store)
    alone = recommend(policy, trie, shown["prompt"].to_pylist(), 10, 20)
    assert [row["item_ids"] for row in found] == [one.item_ids for one in alone]
    assert found[0]["scores"] == pytest.approx(alone[0].scores, abs=1e-4)
    assert found[0]["scores"] != pytest.approx(recommend(policy, trie, ["".join(texts)], 10, 20)[0].scores, abs=1e-4)
    # the history has items of needs 0, 1 and 2
    assert found[0]["reasons"] == [[f"need {int(item[1:]) % 4}"] for item in found[0]["item_ids"]]


def test_a_job_killed_while_training_and_then_a_worker_of_it_end_with_the_metrics_of_a_whole_run(
    config, whole, tmp_path, ray_local, capsys
):
    config = apply_overrides(config, LONG)
    toml = tmp_path / "config.toml"
    sections = json.loads(config.model_dump_json(include={"run", "data", "sids", "policy", "train", "sft"}))
    toml.write_text("".join(_section(name, values) for name, values in sections.items()))
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "jobs.train_sft", "--config", str(toml), f"cluster.address={address}"]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert job.stdout is not None
    assert any("epoch 6," in line for line in job.stdout)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert artifacts.read_manifest(Store(config.run.dir), "policy_sft") is None

    capsys.readouterr()
    told, killed = list[str](), list[int]()
    left_over = {worker.pid for worker in _training_workers()}  # Ray may take a while to end those of the killed job
    killer = threading.Thread(target=_kill_a_worker, args=(capsys, told, killed, left_over))
    killer.start()
    train_sft.run(config, Options())
    killer.join()
    assert len(killed) == 1
    first = int(re.findall(r"epoch (\d+),", "".join(told))[0])
    assert first > 4, "the job goes on from a checkpoint of the killed one"
    interrupted, uninterrupted = _metrics(config, "policy_sft"), _metrics(whole[0], "policy_sft")
    for key in ("epoch", "step", "loss"):
        assert [record[key] for record in interrupted] == pytest.approx([record[key] for record in uninterrupted], rel=1e-6)
    scores = [[record["ndcg@10"] for record in run if "ndcg@10" in record] for run in (interrupted, uninterrupted)]
    assert len(scores[0]) == 4 and scores[0] == pytest.approx(scores[1], rel=1e-6)


def _training_workers() -> list[psutil.Process]:
    """Return the training workers of this session's Ray; a process that ends meanwhile is none."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found += [child] * any("RayTrainWorker" in word for word in child.cmdline())
    return found


def _kill_a_worker(capsys: pytest.CaptureFixture[str], told: list[str], killed: list[int], left_over: set[int]) -> None:
    """Kill one of the job's training workers, without a chance to clean up, once it trains."""

    def is_far_enough() -> bool:
        told.append(capsys.readouterr().out)
        return "epoch 8," in "".join(told)

    wait_until(is_far_enough)
    workers = [worker for worker in _training_workers() if worker.pid not in left_over]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    killed.append(workers[1].pid)


def _section(name: str, values: dict[str, object]) -> str:
    nested = {key: value for key, value in values.items() if isinstance(value, dict)}
    plain = {key: value for key, value in values.items() if key not in nested and value is not None}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    return f"[{name}]\n" + "\n".join(lines) + "\n" + "".join(_section(f"{name}.{key}", value) for key, value in nested.items())
