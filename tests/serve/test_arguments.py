"""What the application is started with."""

import re

import pytest
import yaml

from serve.app import AppArguments, app
from serve.client import main
from serve.schemas import RecommendRequest


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
    for field in RecommendRequest.model_json_schema()["properties"].values():
        assert "maxItems" in field or "maximum" in field


def test_the_client_says_that_there_is_no_server(capsys):
    assert main(["--url", "http://127.0.0.1:9", "--history", "a"]) == 2
    assert re.search(r"error: http://127\.0\.0\.1:9: .*refused", capsys.readouterr().err)
