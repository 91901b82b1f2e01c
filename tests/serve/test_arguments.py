"""What the application is started with."""

import re

import pytest
import yaml

from serve.app import app
from serve.client import main
from serve.completion_schemas import CompletionRequest
from serve.item_schemas import NewItem
from serve.schemas import ChangeDefault, RecommendBatch, RecommendRequest
from serve.settings import AppArguments, VersionSettings


def test_a_run_directory_is_needed(monkeypatch):
    monkeypatch.delenv("DIGR_RUN_DIR", raising=False)
    with pytest.raises(ValueError, match=r"serve: no run to serve; pass run_dir=.* or set DIGR_RUN_DIR"):
        app(AppArguments())


def test_the_environment_names_the_run(monkeypatch):
    monkeypatch.setenv("DIGR_RUN_DIR", "runs/x")
    assert AppArguments().run_dir == "runs/x"


def test_the_deployed_arguments_are_known_ones(request):
    config = yaml.safe_load((request.config.rootpath / "serve" / "config.yaml").read_text())
    assert [entry["import_path"] for entry in config["applications"]] == ["serve.app:app"]
    AppArguments.model_validate(config["applications"][0]["args"])


def test_a_request_cannot_be_without_bounds():
    """Every list, text and number of every request body has a largest size."""
    for model in (RecommendRequest, RecommendBatch, NewItem, ChangeDefault, CompletionRequest):
        schema = model.model_json_schema()
        unbounded = list(_unbounded(schema, schema, model.__name__))
        assert unbounded == []


def _unbounded(node, root, where):
    if "$ref" in node:
        yield from _unbounded(root["$defs"][node["$ref"].split("/")[-1]], root, where)
        return
    for part in node.get("anyOf", []):
        yield from _unbounded(part, root, where)
    bound = {"array": "maxItems", "string": "maxLength", "integer": "maximum", "number": "maximum"}.get(node.get("type"))
    if bound and bound not in node and "enum" not in node and "const" not in node:
        yield where
    for name, part in node.get("properties", {}).items():
        yield from _unbounded(part, root, f"{where}.{name}")
    if "items" in node:
        yield from _unbounded(node["items"], root, f"{where}[]")


def test_the_client_says_that_there_is_no_server(capsys):
    assert main(["--url", "http://127.0.0.1:9", "recommend", "--history", "a"]) == 2
    assert re.search(r"error: http://127\.0\.0\.1:9: .*refused", capsys.readouterr().err)


def test_the_default_model_is_one_of_the_models():
    with pytest.raises(ValueError, match=r"default_model = 'c' is none of the models \['a', 'b'\]"):
        AppArguments(models={"a": VersionSettings(run_dir="x"), "b": VersionSettings(run_dir="y")}, default_model="c")


def test_replicas_get_absolute_paths_and_a_local_run_a_place_for_its_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resolved = AppArguments(run_dir="runs/x", keys_file="keys.toml").resolved()
    assert resolved.models == {"main": VersionSettings(run_dir=f"{tmp_path}/runs/x")}
    assert resolved.state_dir == f"{tmp_path}/runs/x/serving"
    assert resolved.keys_file == f"{tmp_path}/keys.toml"
    far = AppArguments(run_dir="s3://bucket/x").resolved()
    assert (far.models["main"].run_dir, far.state_dir) == ("s3://bucket/x", "")
    assert AppArguments(models={"a": VersionSettings(run_dir="y")}).resolved().state_dir == ""


def test_a_change_of_versions_alone_changes_nothing_that_needs_new_replicas():
    one = AppArguments(models={"a": VersionSettings(run_dir="/x")}).resolved()
    two = AppArguments(models={"b": VersionSettings(run_dir="/y", policy="policy_sft")}).resolved()
    assert one.fixed() == two.fixed()
    assert one.live() != two.live()
