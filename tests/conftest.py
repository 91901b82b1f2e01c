"""What all tests share: a local Ray, and tiers that skip with a reason."""

import gc
import importlib.util
import os
import shutil
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.patience import PATIENT_RAY, SHARED_CORES

# a property that holds on a fast machine holds on a slow one
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# before any Ray starts, in this process or in a command that a test runs
os.environ.update({name: value for name, value in (PATIENT_RAY | SHARED_CORES).items() if name not in os.environ})

gc.disable()  # off until all test modules are imported, which makes many objects and little garbage: a fifth faster


def pytest_collection_finish() -> None:
    """Collect garbage from here on."""
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say what is missing."""
    missing = {
        "vllm": None if importlib.util.find_spec("vllm") else "vLLM is not installed (pip install digr[cpu] or digr[gpu])",
        "browser": None if shutil.which("chromium") else "chromium is not installed (apt-get install chromium)",
        "gpu": None if torch.cuda.is_available() else "this machine has no GPU",
    }
    for item in items:
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """Start one Ray on this machine for the whole session."""
    import ray

    from digr.config import build_config
    from jobs.runtime.session import start_ray

    os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "serve.edge:middlewares"
    start_ray(build_config({"run": {"dir": "unused"}, "cluster": {"address": "local"}}, "tests"))
    yield
    ray.shutdown()
