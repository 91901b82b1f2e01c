"""A mistake of the user is one line and exit code 2, wherever it is found; a failure keeps its traceback.

`digr` and `python -m jobs.<job>` are one parser: the same options, help and exit codes.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import jobs
from digr.artifacts import COMMANDS, JOB_OF
from digr.config import Config
from jobs.__main__ import app
from jobs.runtime.command_line import ALWAYS_READ, SECTIONS, complete, main
from jobs.runtime.session import start_ray
from jobs.training.workers import fit


def _bad_rows(rows):
    raise ValueError("table: bad row 3; mend it")


def _bad_loop(values):
    raise ValueError("shard: no rows; mend it")


def _in_ray_data(config, options):
    import ray

    start_ray(config)
    ray.data.range(4).map_batches(_bad_rows).materialize()
    return {}


def _in_ray_train(config, options):
    start_ray(config)
    fit(config, _bad_loop, {}, config.run.dir, num_workers=1)
    return {}


def _on_the_driver(config, options):
    raise RuntimeError("out of luck")


@pytest.mark.ray
@pytest.mark.parametrize(
    ("run", "message"), [(_in_ray_data, "table: bad row 3; mend it"), (_in_ray_train, "shard: no rows; mend it")]
)
def test_a_mistake_found_by_a_worker_ends_a_job_with_2_and_its_message(run, message, ray_local, tmp_path, capsys):
    arguments = ["--config", "configs/quickstart.toml", f"run.dir={tmp_path}", "train.max_failures=0"]
    with pytest.raises(SystemExit) as leave:
        main(run, arguments)
    assert leave.value.code == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["error"] == message
    assert f"error: {message}\n" in captured.err


def test_a_failure_that_no_user_can_mend_keeps_its_traceback(tmp_path, capsys):
    with pytest.raises(RuntimeError, match="out of luck"):
        main(_on_the_driver, ["--config", "configs/quickstart.toml", f"run.dir={tmp_path}"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"] == "failed"


FOLDER = Path(jobs.__file__).parent
SMALL = ["data.synthetic.num_items=40", "data.synthetic.num_users=60", "data.synthetic.num_interests=4"]


def _digr(*words: str):
    return CliRunner().invoke(app, words, env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_a_storage_that_does_not_answer_ends_a_job_with_2_and_a_sentence(monkeypatch):
    for variable, value in {
        "ENDPOINT_URL": "http://127.0.0.1:9",
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
        "MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(f"AWS_{variable}", value)
    done = _digr("train", "sft", "quickstart", "run.dir=s3://no-such-bucket/run")
    assert done.exit_code == 2
    assert re.search(
        r"error: .*no-such-bucket.*AWS Error.*; check the address, the credentials and AWS_ENDPOINT_URL", done.output
    )


def test_every_job_is_a_command_of_digr():
    about_files = {"import_data", "describe_data"}
    files = {path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("__")}
    assert set(COMMANDS.values()) | about_files == files
    assert len(set(COMMANDS.values())) == len(COMMANDS)
    shown = _digr("data", "--help").output
    assert {"import", "describe", "prepare"} <= set(re.findall(r"^│ (\w+)", shown, re.MULTILINE))


@pytest.mark.parametrize("words", COMMANDS)
def test_help_says_what_a_job_makes_and_lists_the_fields_of_its_sections(words):
    shown = _digr(*words.split(), "--help")
    assert shown.exit_code == 0
    first = ast.get_docstring(ast.parse((FOLDER / f"{COMMANDS[words]}.py").read_text())).split(":")[0].split(",")[0]
    assert first in " ".join(shown.output.split())
    listed = set(re.findall(r"^\[+([a-z]+)", shown.output, re.MULTILINE))
    job = COMMANDS[words]
    expected = {*ALWAYS_READ, *SECTIONS[job]} if job in SECTIONS else {"run", "data", "interests", "sft", "ablations"}
    assert expected <= listed
    assert job not in SECTIONS or listed == expected


def test_a_field_is_shown_with_its_values_default_and_meaning():
    lines = _digr("train", "sft", "--help").output.splitlines()
    row = next(line for line in lines if line.startswith("│ sft.epochs "))
    assert [cell.strip() for cell in row.strip("│").split("│")][:3] == ["sft.epochs", "whole number, at least 1", "25"]


@pytest.mark.parametrize("job", SECTIONS)
def test_help_lists_every_section_that_a_job_names(job):
    tree = ast.parse((FOLDER / f"{job}.py").read_text())
    run = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    named = {node.value for node in ast.walk(run) if isinstance(node, ast.Constant)} & set(Config.model_fields)
    assert named - set(JOB_OF) <= {*ALWAYS_READ, *SECTIONS[job]}  # an artifact may have the name of a section
    assert set(SECTIONS[job]) <= set(Config.model_fields)


def test_the_config_is_the_first_word_or_an_option():
    for words in (["configs/quickstart.toml", "sft.epochs=3"], ["sft.epochs=3", "--config", "configs/quickstart.toml"]):
        shown = _digr("train", "sft", "--print-config", *words)
        assert shown.exit_code == 0, shown.output
        assert json.loads(shown.stdout)["sft"]["epochs"] == 3


def test_without_a_config_a_job_says_what_to_name():
    shown = _digr("train", "sft", "sft.epochs=3")
    assert shown.exit_code == 2
    assert "error: no config: name a TOML file or a preset, for example configs/quickstart.toml" in shown.stderr
    assert shown.stdout == ""


def test_two_words_that_are_no_overrides_are_refused():
    shown = _digr("train", "sft", "configs/quickstart.toml", "configs/beauty.toml")
    assert shown.exit_code == 2
    assert "override 'configs/beauty.toml': expected section.key=value" in shown.stderr


def test_a_wrong_option_exits_with_2():
    shown = _digr("train", "sft", "configs/quickstart.toml", "--frce")
    assert shown.exit_code == 2
    assert "No such option: --frce" in shown.stderr


def test_json_is_all_there_is_on_stdout_and_lines_go_to_stderr(tmp_path):
    command = [sys.executable, "-m", "jobs", "data", "prepare", "configs/quickstart.toml", *SMALL, f"run.dir={tmp_path}"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=FOLDER.parent)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "built"
    assert "items: 40 items" in done.stderr
    again = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parent)
    assert again.returncode == 0
    assert again.stdout.splitlines()[-1].endswith("items: up to date, skipped")
    failed = subprocess.run([*command, "data.core=9", "--json"], capture_output=True, text=True, cwd=FOLDER.parent)
    assert failed.returncode == 2
    assert json.loads(failed.stdout)["status"] == "failed"


def test_a_shell_completes_configs_and_keys(monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    assert complete("configs/q") == ["configs/quickstart.toml"]
    assert complete("quick") == ["quickstart"]
    assert complete("sft.ep") == ["sft.epochs="]
