"""One tiny run and one endpoint over it, without Ray, for all tests of this folder."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from digr.artifacts import Store
from serve.settings import AppArguments
from tests.serve.chromium import Page, chromium
from tests.serve.tiny_run import BEAM_WIDTH, serve_without_ray, write_run


@pytest.fixture(scope="session", autouse=True)
def mapped_files(tmp_path_factory) -> Iterator[None]:
    """Keep the files that replicas map out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Store:
    """Write the run."""
    return write_run(str(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def client(tiny_run) -> Iterator[TestClient]:
    """Serve it."""
    with serve_without_ray(AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH, max_pending=1)) as client:
        yield client


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Page]:
    """Start Chromium."""
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page
