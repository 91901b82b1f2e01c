"""What a stage reuses of earlier builds: its scratch folder unless forced, but no input whose own inputs were rebuilt."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import Config, build_config
from jobs import recommend, train_grpo
from jobs.runtime.session import Options
from jobs.runtime.stage import Output, run_stage, trained_policies


def _config(root: Path, **sections) -> Config:
    return build_config({"run": {"dir": str(root)}, **sections}, "test")


def _build(config: Config, options: Options, die: bool) -> list[str]:
    """Run a stage that leaves a checkpoint in its scratch folder; returns what it found there."""
    found: list[str] = []

    def build(store: Store, work: str) -> Mapping[str, Output]:
        folder = Path(work)
        found.extend(path.name for path in folder.glob("*"))
        folder.mkdir(exist_ok=True)
        (folder / f"checkpoint-{len(found)}").touch()
        if die:
            raise KeyboardInterrupt
        return {"policy_sft": Output()}

    try:
        run_stage(config, options, outputs=["policy_sft"], sections=["sft"], build=build)
    except KeyboardInterrupt:
        assert die
    return found


def test_a_killed_build_goes_on_in_its_scratch_folder_and_a_forced_one_begins_anew(tmp_path):
    """A forced build went on from the checkpoints of the build that it should replace."""
    config = _config(tmp_path)
    assert _build(config, Options(), die=True) == []
    assert _build(config, Options(), die=True) == ["checkpoint-0"]
    assert sorted(_build(config, Options(force="stale"), die=True)) == ["checkpoint-0", "checkpoint-1"]
    assert _build(config, Options(force="all"), die=True) == []
    assert _build(config, Options(), die=False) == ["checkpoint-0"]


def test_a_finished_build_leaves_no_scratch_folder(tmp_path):
    _build(_config(tmp_path), Options(), die=False)
    assert _build(_config(tmp_path), Options(force="all"), die=True) == []
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == ["policy_sft", "policy_sft.work"]


def _run_with_sids(root: Path) -> Store:
    """Commit the manifests that a policy's recommendations need, and semantic IDs built anew after its training."""
    store = Store(str(root))
    for name in ("histories", "interest_labels", "item_sids"):
        artifacts.begin(store, name)
        artifacts.commit(store, Manifest(name=name))
    for policy in ("policy_sft", "policy_grpo"):
        artifacts.begin(store, policy)
        inputs = {"item_sids": artifacts.require(store, "item_sids").digest}
        artifacts.commit(store, Manifest(name=policy, inputs=inputs))
    artifacts.commit(store, Manifest(name="item_sids", facts={"level_sizes": [4]}))
    return store


@pytest.mark.parametrize("policy", ["sft", "grpo"])
def test_a_policy_is_used_only_with_the_semantic_ids_it_was_trained_on(tmp_path, policy):
    """A policy decoded the SIDs of another build without a word, and its lists were noise."""
    store = _run_with_sids(tmp_path)
    was, now = artifacts.require(store, f"policy_{policy}").inputs["item_sids"], artifacts.require(store, "item_sids").digest
    message = rf"policy_{policy}: made from item_sids {was}, but .*item_sids is now {now}; run `digr train {policy} CONFIG"
    with pytest.raises(ValueError, match=message):
        recommend.run_one(_config(tmp_path), Options(force="all"), policy, [])
    assert recommend.run_one(_config(tmp_path), Options(dry_run=True), policy, [])["status"] == "would build"


def test_a_run_has_grpo_where_it_is_enabled_and_has_made_a_policy(tmp_path, capsys):
    config, without = _config(tmp_path), _config(tmp_path, grpo={"enabled": False})
    assert trained_policies(config, Options()) == ["sft"]
    assert "policy_grpo does not exist; run `digr train grpo CONFIG` to train it" in capsys.readouterr().out
    assert trained_policies(config, Options(dry_run=True)) == ["sft", "grpo"]
    _run_with_sids(tmp_path)
    assert trained_policies(config, Options()) == ["sft", "grpo"]
    assert trained_policies(without, Options()) == ["sft"]
    assert "policy_grpo: left out: grpo.enabled = false" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"grpo\.enabled = false: this run has no GRPO; set it to true"):
        train_grpo.run(without, Options())
