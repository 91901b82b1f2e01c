"""The arguments that start the application."""

import re
import socket

import pytest
import typer
import yaml
from typer.testing import CliRunner

from serve.app import app
from serve.asking.command_line import app as commands
from serve.contract.completion_schemas import CompletionRequest
from serve.contract.item_schemas import NewItem
from serve.contract.schemas import ChangeDefault, RecommendBatch, RecommendRequest
from serve.contract.similar_schemas import SimilarRequest
from serve.run import check_servable, read_arguments
from serve.run import serve as serve_command
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
    for model in (RecommendRequest, RecommendBatch, SimilarRequest, NewItem, ChangeDefault, CompletionRequest):
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


def test_the_client_says_that_there_is_no_server():
    found = CliRunner().invoke(commands, ["ask", "--url", "http://127.0.0.1:9", "--history", "a"])
    assert found.exit_code == 2
    assert re.fullmatch(
        r"error: http://127\.0\.0\.1:9: no server listens there \(.*refused.*\); start one with .*\n", found.stderr
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ask"], "give either --history ITEM ITEM ... (oldest first) or --user USER"),
        (["ask", "a", "--user", "u"], "give either --history ITEM ITEM ... (oldest first) or --user USER"),
        (["ask", "--user", "u", "--history"], "give either --history ITEM ITEM ... (oldest first) or --user USER"),
        (["ask", "--history", "-x"], "No such option: -x"),
        (["ask", "a", "--k", "0"], "Invalid value for '--k': Input should be greater than or equal to 1"),
        (["ask", "a", "--k", "[red]x"], "Invalid value for '--k': Input should be a valid integer, unable to parse"),
        (["ask", "a", "--boost", "Lamps=2"], "error: --boost 'Lamps=2': expected item:ID=WEIGHT, category:NAME=WEIGHT or brand"),
        (["ask", "a", "--boost", "brand:x"], "error: --boost 'brand:x': expected item:ID=WEIGHT"),
        (["ask", "a", "--boost", "brand:x=much"], "error: weight: Input should be a valid number"),
        (["ask", "a", "--diversity", "2"], "Invalid value for '--diversity': Input should be less than or equal to 1"),
        (["items", "similar", "a", "--source", "smell"], "error: sources.0: Input should be 'text'"),
        (["ask", "--user", ""], "error: user_id: String should have at least 1 character, found ''"),
        (["ask", "a\x1b[31m"], "error: history.0: String should match pattern"),
        (["ask", "a", "--history=b"], "Option '--history' does not take a value"),
        (["items", "add", "a"], "Missing option '--title'"),
        (["items", "add", "a", "--title", "t", "--currency", "euro"], "error: currency: String should have at most 3 characters"),
        (["items", "shw", "a"], "No such command 'shw'"),
        (["models", "promote", "a b"], "error: model: String should match pattern"),
        (["load"], "Missing option '--rate'"),
        (["load", "--rate", "5", "--bodies", "nowhere.jsonl"], "'nowhere.jsonl' does not exist"),
    ],
)
def test_a_wrong_command_says_what_is_wrong_with_it(words, message):
    found = CliRunner().invoke(commands, words, env={"DIGR_URL": "http://127.0.0.1:9"})
    assert (found.exit_code, found.stdout) == (2, "")
    assert message in found.stderr and "\x1b" not in found.stderr


@pytest.mark.parametrize(
    "words", [["ask", "--user", "-x"], ["ask", "--history", "--", "-x", "--json"], ["items", "show", "--", "-x"]]
)
def test_names_that_look_like_options_can_be_asked_for(words):
    found = CliRunner().invoke(commands, words, env={"DIGR_URL": "http://127.0.0.1:9"})
    assert found.stderr.startswith("error: http://127.0.0.1:9: no server listens there")


def test_every_command_has_help_that_names_the_environment():
    assert CliRunner().invoke(commands, ["--help"]).stdout.count("DIGR_API_KEY") == 1
    for words in (
        ["ask"],
        ["load"],
        ["items", "search"],
        ["items", "show"],
        ["items", "similar"],
        ["items", "add"],
        ["models", "list"],
    ):
        shown = CliRunner().invoke(commands, [*words, "--help"])
        assert shown.exit_code == 0 and "DIGR_URL" in shown.stdout and "--json" in shown.stdout


def test_words_behind_a_run_are_settings_of_the_application_and_its_version():
    arguments = read_arguments("runs/x", ["ranker=off", "beam_width=20", "keys_file=keys.toml"])
    assert arguments.models == {"main": VersionSettings(run_dir="runs/x", ranker="off")}
    assert (arguments.beam_width, arguments.keys_file, arguments.state_dir) == (20, "keys.toml", "")
    assert arguments.resolved() == AppArguments(
        run_dir="runs/x", models={"main": VersionSettings(run_dir="runs/x", ranker="off")}, beam_width=20,
        keys_file="keys.toml", state_dir="runs/x/serving",
    ).resolved()  # fmt: skip
    assert read_arguments("runs/x", ["state_dir=/state"]).state_dir == "/state"
    assert read_arguments("s3://bucket/x", []).state_dir == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["off"], "'off': expected NAME=VALUE, for example ranker=off"),
        (["rankr=off"], "'rankr=off': there is no setting 'rankr'; the nearest one is ranker, all are in serve/settings.py"),
        (["run_dir=x"], "there is no setting 'run_dir'"),
        (["ranker=maybe"], "ranker = 'maybe': Input should be 'on' or 'off'"),
        (["beam_width=many"], "beam_width = 'many': Input should be a valid integer"),
        ([], "no such folder; give the folder of a finished run, as `digr run quickstart` makes it"),
    ],
)
def test_a_wrong_setting_or_folder_is_an_error_before_anything_starts(words, message):
    found = _serve("/nowhere/x", *words)
    assert (found.exit_code, found.stdout) == (2, "")
    assert found.stderr.startswith("error: ") and message in found.stderr


def test_a_run_without_a_policy_a_missing_key_file_and_a_taken_port_are_errors_before_anything_starts(tmp_path, tiny_run):
    assert "artifact policy_sft does not exist; run `digr train sft CONFIG`" in _serve(str(tmp_path)).stderr
    assert "no such file; make keys with" in _serve(tiny_run.root, f"keys_file={tmp_path}/keys.toml").stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = _serve(tiny_run.root, "--port", str(taken.getsockname()[1]))
    assert found.exit_code == 2
    assert re.match(r"error: cannot listen on 127\.0\.0\.1:\d+ \(Address already in use.*; stop what listens there", found.stderr)


def _serve(*words: str):
    command = typer.Typer(rich_markup_mode=None)
    command.command()(serve_command)
    return CliRunner().invoke(command, list(words))


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
    assert AppArguments(run_dir="x", models={"a": VersionSettings(run_dir="y")}).resolved().state_dir == ""
    assert AppArguments(run_dir="x", state_dir="s3://bucket/state/").resolved().state_dir == "s3://bucket/state"


@pytest.mark.parametrize("address", ["gs://bucket/state", "s3:///state", "https://host/state", "file://host/state"])
def test_a_state_of_an_unsupported_kind_is_an_error_at_the_start(address):
    with pytest.raises(ValueError, match=f"state_dir = '{address}': expected a folder .* or s3://bucket/prefix"):
        AppArguments(run_dir="x", state_dir=address).resolved()
    with pytest.raises(ValueError, match="expected a folder"):
        check_servable(read_arguments("runs/x", [f"state_dir={address}"]))


def test_a_change_of_versions_alone_changes_nothing_that_needs_new_replicas():
    one = AppArguments(models={"a": VersionSettings(run_dir="/x")}).resolved()
    two = AppArguments(models={"b": VersionSettings(run_dir="/y", policy="policy_sft")}).resolved()
    assert one.fixed() == two.fixed()
    assert one.live() != two.live()
