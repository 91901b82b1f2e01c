"""A mistake of the user is one line and exit code 2, wherever it is found; a failure keeps its traceback."""

import json

import pytest

from jobs.runtime.session import main, start_ray
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
