"""New weights in an old folder are noticed; large files are read once."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from digr.artifacts import StaleArtifact
from digr.config import build_config
from digr.config.models import ModelConfig
from digr.models.loading import CACHED_BYTES, weights_digest
from jobs.asking.miners import what_else_decides
from jobs.runtime.session import Options
from jobs.runtime.stage import Output, run_stage


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "digr" / "digests"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model folder: weights of four megabytes, which were written long ago, and a config."""
    (tmp_path / "model").mkdir()
    save_file({"weight": torch.zeros(1 << 20)}, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text("{}")
    assert (tmp_path / "model" / "model.safetensors").stat().st_size > CACHED_BYTES
    os.utime(tmp_path / "model" / "model.safetensors", (1e9, 1e9))
    return tmp_path / "model"


def _change_last_byte(path: Path, value: bytes, modified: float) -> None:
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(value)
    os.utime(path, (modified, modified))


def _digest(folder: Path) -> str:
    return weights_digest(ModelConfig(name=str(folder)), "policy.base")


def test_a_changed_byte_of_weights_or_config_changes_the_digest_and_a_readme_does_not(folder):
    before = _digest(folder)
    (folder / "README.md").write_text("about")
    assert _digest(folder) == before
    _change_last_byte(folder / "model.safetensors", b"x", 1e9 + 1)
    changed = _digest(folder)
    (folder / "config.json").write_text("[]")
    assert len({before, changed, _digest(folder)}) == 3


def test_a_large_file_is_read_again_only_if_its_size_or_time_changed(folder, cache):
    before = _digest(folder)
    assert len(list(cache.iterdir())) == 1
    _change_last_byte(folder / "model.safetensors", b"x", 1e9)
    assert _digest(folder) == before, "nothing that a look at the folder shows has changed"
    os.utime(folder / "model.safetensors", (1e9, 1e9 + 1))
    assert _digest(folder) != before


def test_a_hub_model_is_its_commit_where_that_is_known_and_its_revision_where_no_hub_answers(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit, repo = "0123456789abcdef0123456789abcdef01234567", tmp_path / "hub" / "models--some--model"
    assert weights_digest(ModelConfig(name="some/model", revision=commit), "x") == f"some/model@{commit}"
    assert weights_digest(ModelConfig(name="some/other", revision="v2"), "x") == "some/other@v2"
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "snapshots" / commit / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    assert weights_digest(ModelConfig(name="some/model"), "x") == f"some/model@{commit}"


def test_a_hub_that_cannot_be_reached_is_a_warning(monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert weights_digest(ModelConfig(name="some/unseen-model"), "policy.base") == "some/unseen-model@main"
    assert "policy.base = 'some/unseen-model': no answer from the hub" in caplog.text


def test_what_is_no_model_is_named_with_its_key(tmp_path):
    with pytest.raises(ValueError, match=r"policy.base = '/no/such/folder': no such folder, and not a hub name"):
        _digest(Path("/no/such/folder"))
    with pytest.raises(ValueError, match=r"policy.base = .*: the folder has no model files"):
        _digest(tmp_path)


def test_new_weights_of_a_miner_ask_anew_and_those_of_another_do_not(tmp_path, folder):
    interests = {"miners": [{"kind": "vllm", "name": "m", "model": str(folder)}, {"kind": "extractive"}]}
    config = build_config({"run": {"dir": "x"}, "interests": interests}, where="test")

    def decisive() -> list[str]:
        return [what_else_decides(config, "item", miner) for miner in config.interests.miners]

    before = decisive()
    _change_last_byte(folder / "model.safetensors", b"x", 1e9 + 1)
    after = decisive()
    assert before[0] != after[0] and before[1] == after[1]


def test_new_weights_in_an_old_folder_make_a_stage_stale_and_touching_nothing_skips_it(tmp_path, folder):
    """Only a model's name was in manifests: a run went on with what other weights had made."""
    config = build_config({"run": {"dir": str(tmp_path / "run")}}, where="test")

    def run() -> str:
        models = {"embeddings.encoder": ModelConfig(name=str(folder))}
        build = lambda store, work: {"classifier": Output(1)}  # noqa: E731
        return run_stage(config, Options(), outputs=["classifier"], sections=["run"], build=build, models=models)["status"]

    assert [run(), run()] == ["built", "skipped"]
    _change_last_byte(folder / "model.safetensors", b"x", 1e9 + 1)
    with pytest.raises(StaleArtifact, match=r"different: input model embeddings.encoder\); run .* --force"):
        run()
