"""The KubeRay manifests satisfy KubeRay's published schemas, and fit this project."""

import re
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml

from digr.config import load_config
from tests.real_data import real_folder

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted((ROOT / "cluster" / "kuberay").glob("*.yaml"))
CLUSTER_AT = {
    "RayCluster": ("spec",),
    "RayJob": ("spec", "rayClusterSpec"),
    "RayCronJob": ("spec", "jobTemplate", "rayClusterSpec"),
    "RayService": ("spec", "rayClusterConfig"),
}


def _strict(schema):
    """Close every object that lists its properties, as the API server does when it prunes or refuses unknown fields."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _strict(value) for key, value in schema.items()}
    if closed.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    open_fields = closed.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in closed
    if isinstance(closed.get("properties"), dict) and closed.get("type") == "object" and not open_fields:
        closed["additionalProperties"] = False
    return closed


@cache
def _schema(kind: str, api: str) -> dict:
    path = Path(real_folder("kuberay_crds")) / f"ray.io_{kind.lower()}s.yaml"
    group, version = api.split("/")
    definition = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert (definition["spec"]["group"], definition["spec"]["names"]["kind"]) == (group, kind)
    schema = next(item for item in definition["spec"]["versions"] if item["name"] == version)["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("name", "generateName", "namespace")},
    }
    return _strict(schema)


def _problems(manifest: dict) -> list[str]:
    """What a manifest violates; the schema itself, a megabyte of foreign text, is not checked each time."""
    validator = jsonschema.Draft202012Validator(_schema(manifest["kind"], manifest["apiVersion"]))
    return [error.message for error in validator.iter_errors(manifest)]


def _cluster(manifest: dict) -> dict:
    node = manifest
    for key in CLUSTER_AT[manifest["kind"]]:
        node = node[key]
    return node


def test_there_is_one_manifest_of_each_kind():
    assert sorted(yaml.safe_load(path.read_text())["kind"] for path in MANIFESTS) == sorted(CLUSTER_AT)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_satisfies_the_published_schema(path):
    assert _problems(yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize("wrong", [{"replica": 1}, {"minReplicas": "one"}])
def test_the_schema_check_finds_a_misspelt_or_mistyped_field(wrong):
    manifest = yaml.safe_load((ROOT / "cluster" / "kuberay" / "raycluster.yaml").read_text())
    manifest["spec"]["workerGroupSpecs"][0] |= wrong
    (found,) = _problems(manifest)
    assert re.search(r"'replica' was unexpected|'one' is not of type 'integer'", found)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_cluster_has_the_locked_ray_token_authentication_and_bounded_pods(path):
    locked = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines())
    cluster = _cluster(yaml.safe_load(path.read_text()))
    assert cluster["rayVersion"] == locked["ray"]
    assert cluster["authOptions"]["mode"] == "token"
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for container in (container for group in groups for container in group["template"]["spec"]["containers"]):
        assert re.fullmatch(r"my-registry/digr:(cpu|gpu)", container["image"])
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == container["image"].endswith(":gpu")


@pytest.mark.parametrize("name", ["rayjob", "raycronjob"])
def test_the_entrypoint_is_a_job_with_a_config_that_loads(name):
    manifest = yaml.safe_load((ROOT / "cluster" / "kuberay" / f"{name}.yaml").read_text())
    spec = manifest["spec"].get("jobTemplate", manifest["spec"])
    python, flag, module, config_flag, path, *rest = spec["entrypoint"].split()
    assert (python, flag, config_flag) == ("python", "-m", "--config")
    assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
    config = load_config(ROOT / path, [item for item in rest if not item.startswith("--")])
    assert config.run.dir.startswith("s3://")


@pytest.mark.ray
def test_the_service_deploys_the_application_that_exists():
    from ray.serve.schema import ServeDeploySchema

    import serve.app

    manifest = yaml.safe_load((ROOT / "cluster" / "kuberay" / "rayservice.yaml").read_text())
    local = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    for config in (yaml.safe_load(manifest["spec"]["serveConfigV2"]), local):
        (application,) = ServeDeploySchema.model_validate(config).applications
        assert application.import_path == "serve.app:app"
        assert {item.name for item in application.deployments} == {serve.app.Recommender.name}
        serve.app.AppArguments.model_validate(application.args)
