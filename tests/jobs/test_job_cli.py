"""Every job has the same command line, alone and submitted to a cluster; the last line it prints is its summary as JSON."""

import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.patience import CEILING_SECONDS, POLL_SECONDS, wait_until

ROOT = Path(__file__).resolve().parents[2]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if "main(run)" in path.read_text())
SMALL = ["data.synthetic.num_items=40", "data.synthetic.num_users=60", "data.synthetic.num_interests=4"]


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict:
        """The last line of the output."""
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture
def job(monkeypatch, capsys):
    """Run `python -m jobs.<name> --config configs/quickstart.toml ...` in this process, which has paid its imports."""

    def run(name: str, *arguments: str) -> Result:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [name, "--config", "configs/quickstart.toml", *arguments])
        code = 0
        try:
            with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
                runpy.run_module(f"jobs.{name}", run_name="__main__", alter_sys=True)
        except SystemExit as leave:
            code = int(leave.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.mark.parametrize("name", JOBS)
def test_a_job_prints_its_whole_config(job, name):
    result = job(name, "--print-config", "sft.epochs=3")
    assert result.code == 0, result.err
    config = json.loads(result.out)
    assert config["sft"]["epochs"] == 3
    assert config["grpo"]["reward"]["preset"] == "digr"


@pytest.mark.parametrize("name", JOBS)
def test_a_dry_run_tells_what_would_be_built_and_builds_nothing(job, name, tmp_path):
    result = job(name, "--dry-run", f"run.dir={tmp_path}/run")
    assert result.code == 0, result.err
    assert result.summary["job"] == f"jobs.{name}"
    assert "would" in result.summary["status"]
    assert not (tmp_path / "run").exists()


def test_a_wrong_key_exits_with_2_and_a_summary_that_names_it(job):
    result = job("prepare_data", "data.sorce=parquet")
    assert result.code == 2
    assert (result.summary["job"], result.summary["status"]) == ("jobs.prepare_data", "failed")
    assert "data.sorce: unknown key; the nearest known key is data.source" in result.summary["error"]
    assert "error: config" in result.err


def test_a_missing_input_names_the_job_that_makes_it(job, tmp_path):
    result = job("embed_items", f"run.dir={tmp_path}/run")
    assert result.code == 2
    assert "run `digr data prepare CONFIG`" in result.summary["error"]
    assert not (tmp_path / "run").exists()


def test_a_job_skips_what_is_done_refuses_what_is_stale_and_rebuilds_by_force(job, tmp_path):
    small = [*SMALL, f"run.dir={tmp_path}/run"]
    assert job("prepare_data", *small).summary["status"] == "built"
    assert job("prepare_data", *small).summary["status"] == "skipped"
    stale = job("prepare_data", *small, "data.max_history=5")
    assert stale.code == 2
    assert "config data.max_history" in stale.summary["error"]
    assert "--force" in stale.summary["error"]
    assert job("prepare_data", *small, "data.max_history=5", "--force").summary["status"] == "built"


def test_the_exit_code_reaches_the_shell():
    command = [sys.executable, "-m", "jobs.prepare_data", "--config", "configs/nowhere.toml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert json.loads(result.stdout.splitlines()[-1])["status"] == "failed"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory) -> Iterator[tuple[str, dict[str, str]]]:
    """Start `cluster/local.sh` on free ports with a token of its own; gives the jobs address and the environment."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path_factory.mktemp("home")),
        "RAY_AUTH_MODE": "token",
    }
    port, dashboard, agent, client = _free_ports(4)
    # sockets live below this folder, and their paths may not be long
    with tempfile.TemporaryDirectory(prefix="digr-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        options = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        options += [f"--ray-client-server-port={client}", f"--temp-dir={folder}"]
        log = Path(environment["HOME"]) / "head.log"
        with log.open("w") as stream:
            command = ["bash", "cluster/local.sh", *options]
            head = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: head.poll() is not None or _answers(f"http://127.0.0.1:{dashboard}/api/version"), log.read_text)
            assert head.poll() is None, log.read_text()
            yield f"http://127.0.0.1:{dashboard}", environment
        finally:
            head.terminate()
            head.wait(CEILING_SECONDS)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=POLL_SECONDS)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _submit(address: str, environment: dict[str, str], *entrypoint: str) -> subprocess.CompletedProcess:
    command = ["ray", "job", "submit", "--address", address, "--working-dir", ".", "--", *entrypoint]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.ray
def test_a_job_runs_on_a_cluster_through_ray_job_submit(ray_head, tmp_path):
    address, environment = ray_head
    entrypoint = ["python", "-m", "jobs.prepare_data", "--config", "configs/quickstart.toml", f"run.dir={tmp_path}/run", *SMALL]
    result = _submit(address, environment, *entrypoint)
    assert result.returncode == 0, result.stdout + result.stderr
    assert '{"job": "jobs.prepare_data", "status": "built"' in result.stdout
    assert (tmp_path / "run" / "histories" / "_manifest.json").is_file()


@pytest.mark.ray
def test_a_job_on_the_cluster_joins_it_instead_of_starting_another_ray(ray_head):
    address, environment = ray_head
    code = (
        "import ray; from digr.config import load_config; from jobs.runtime.session import start_ray; "
        "start_ray(load_config('configs/quickstart.toml')); print('nodes', len(ray.nodes()), int(ray.cluster_resources()['CPU']))"
    )
    result = _submit(address, environment, "python", "-c", code)
    assert "nodes 1 8" in result.stdout, result.stdout + result.stderr


@pytest.mark.ray
def test_a_failing_job_fails_its_submission(ray_head, tmp_path):
    address, environment = ray_head
    entrypoint = ["python", "-m", "jobs.embed_items", "--config", "configs/quickstart.toml", f"run.dir={tmp_path}/run"]
    result = _submit(address, environment, *entrypoint)
    assert result.returncode != 0
    assert "artifact items does not exist" in result.stdout


@pytest.mark.ray
def test_the_cluster_refuses_a_submission_without_the_token(ray_head, tmp_path):
    address, environment = ray_head
    stranger = {**environment, "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    result = _submit(address, stranger, "python", "-c", "print('should not run')")
    assert result.returncode != 0
    assert "should not run" not in result.stdout
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}/api/jobs/", timeout=CEILING_SECONDS)
