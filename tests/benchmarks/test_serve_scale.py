"""The generated run of `serve_scale` can be served, changed and swapped; its full form takes ten minutes."""

import pytest

import serve.service
from benchmarks import serve_scale


@pytest.fixture
def run(tmp_path, monkeypatch) -> tuple[str, str]:
    """Write a small run; give its folder and that of the mapped files."""
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # what the benchmark sets is unset afterwards
    monkeypatch.setattr(serve.service, "get_encoder", serve.service.get_encoder)
    monkeypatch.setattr(serve_scale, "PHRASES", 200)
    monkeypatch.setattr(serve_scale, "ADDED", 2)
    serve_scale.write_run(str(tmp_path / "run"), 400, 5)
    return str(tmp_path / "run"), str(tmp_path / "cache")


def test_the_generated_run_is_served_searched_changed_and_swapped(run, tmp_path):
    seconds = serve_scale.requests(serve_scale.start(*run), 20)
    assert len(seconds) == 20
    added = serve_scale.adding(*run, str(tmp_path / "state"))
    assert set(added) == {"add_cpu_ms", "add_first_cpu_ms", "add_visible_seconds"}
    swapped = serve_scale.swapping(*run, 3)
    assert swapped["swap_longest_ms"] >= swapped["swap_p99_ms"] > 0
