"""The `ray up` configs pass Ray's own validation, and the image holds what the jobs import."""

import json
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def schema() -> dict:
    from importlib.util import find_spec

    return json.loads((Path(find_spec("ray").origin).parent / "autoscaler" / "ray-schema.json").read_text())


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_a_cluster_config_satisfies_rays_own_schema(schema, name):
    config = yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())
    jsonschema.validate(config, schema)
    assert config["provider"]["type"] == name
    assert config["head_node_type"] in config["available_node_types"]
    assert sum(kind.get("max_workers", 0) for kind in config["available_node_types"].values()) <= config["max_workers"]
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]


def test_the_schema_check_finds_a_misspelt_field(schema):
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate({"cluster_name": "x", "provider": {"type": "aws"}, "max_worker": 1}, schema)


def test_local_sh_is_valid_shell_and_stops_on_the_first_error():
    path = ROOT / "cluster" / "local.sh"
    assert subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=True).stderr == ""
    assert "set -euo pipefail" in path.read_text()


def test_the_image_copies_the_packages_and_its_ignore_file_lets_them_through():
    lines = (ROOT / "cluster" / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert {"digr", "jobs", "serve", "configs", "pyproject.toml", "requirements.lock", "requirements-gpu.lock"} <= copied
    allowed = {
        line[1:] for line in (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize(("accelerator", "lock"), [("cpu", "requirements.lock"), ("gpu", "requirements-gpu.lock")])
def test_the_image_installs_a_role_from_the_lock_of_that_role(tmp_path, accelerator, lock):
    """The GPU image was built under the lock of the CPU image, which has no solution."""
    steps = (ROOT / "cluster" / "Dockerfile").read_text().replace("\\\n", "")
    (install,) = (line.removeprefix("RUN ") for line in steps.splitlines() if "pip install" in line)
    (tmp_path / "pip").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "ACCELERATOR": accelerator}
    done = subprocess.run(["bash", "-c", install], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    commands = done.stdout.splitlines()
    assert f"install --no-cache-dir --constraint {lock} .[{accelerator}]" in commands
    assert ("download.pytorch.org" in done.stdout) == (accelerator == "cpu")


def test_the_dashboard_asks_for_metrics_that_this_ray_exports():
    import re
    from importlib.util import find_spec

    folder = Path(find_spec("ray").origin).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    known = set(re.findall(r"ray_[a-z_]+", " ".join(path.read_text() for path in folder.glob("*_panels.py"))))
    dashboard = json.loads((ROOT / "cluster" / "grafana" / "digr.json").read_text())
    asked = set(re.findall(r"ray_[a-z_]+", json.dumps(dashboard["panels"])))
    assert len(asked) >= 8
    assert asked <= known
