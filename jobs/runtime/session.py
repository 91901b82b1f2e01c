"""What every job shares: its command line, its progress lines and the Ray it joins."""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, NoReturn

from digr.config import Config, load_config


class Options(NamedTuple):
    """How a job treats what exists: `force` "no" keeps it, "stale" rebuilds what no longer matches, "all" rebuilds."""

    force: Literal["no", "stale", "all"] = "no"
    dry_run: bool = False


def log(stage: str, text: str) -> None:
    """Print one progress line at once."""
    print(f"[{time.strftime('%H:%M:%S')}] {stage}: {text}", flush=True)


LOCAL_RAY_ENV = {
    # nobody reads workers' logs there, for which Ray would look ten times a second
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "3600",
    # its one node is not taken away from under a training but with it
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Environment of a Ray of this machine alone: without processes and work that serve clusters."""


def start_ray(config: Config) -> None:
    """Join the configured Ray, or start one on this machine; a second call does nothing.

    A local Ray declares at least 8 logical CPUs, because each stage of a Ray Data pipeline holds one.
    """
    import ray

    if ray.is_initialized():
        return
    # `ray job submit` sets RAY_ADDRESS for its entry point; "local" keeps off a cluster that happens to run here
    address = config.cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    local: dict[str, Any] = {}
    if address == "local":
        cpus = config.cluster.num_cpus or max(8, os.cpu_count() or 1)
        # as many workers may start at once as there are logical CPUs, Ray warns of every further one otherwise; none before
        # it is needed, which by default are as many as that
        system = {"worker_maximum_startup_concurrency": cpus, "prestart_worker_first_driver": False}
        os.environ.update({name: value for name, value in LOCAL_RAY_ENV.items() if name not in os.environ})
        local = {"num_cpus": cpus, "include_dashboard": False, "_system_config": system}
    ray.init(address=address, log_to_driver=False, configure_logging=False, **local)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # so that a user's mistake is told from a failure
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # jobs print their own progress


def _user_error(error: BaseException | None) -> str | None:
    """Return the message of the ValueError, which a user can mend, behind an error of the driver, Ray Data or Ray Train."""
    while error:
        inner = _behind_ray(error) if "ray" in sys.modules else None
        if inner:
            error = inner
        elif isinstance(error, ValueError):
            return str(error).partition("\nFailed to apply UDF transform")[0]  # Ray Data adds advice of its own
        else:
            error = error.__cause__
    return None


def _behind_ray(error: BaseException) -> BaseException | None:
    """Return what a worker raised, of an error that Ray wraps around it; one around a ValueError is a ValueError too."""
    from ray.exceptions import RayTaskError
    from ray.train import WorkerGroupError

    if isinstance(error, WorkerGroupError):
        return next(iter(error.worker_failures.values()))
    return error.cause if isinstance(error, RayTaskError) else None


def main(
    run: Callable[[Config, Options], dict[str, Any]], argv: Sequence[str] | None = None, force: Literal["stale", "all"] = "all"
) -> None:
    """Run a job from the command line; the last line it prints is its summary as JSON, and a failure exits non-zero."""
    name = run.__module__ if run.__module__ != "__main__" else getattr(sys.modules["__main__"].__spec__, "name", "jobs")
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=(sys.modules[run.__module__].__doc__ or "").strip())
    parser.add_argument("--config", required=True, help="TOML file of the run, for example configs/quickstart.toml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replace a value of the config")
    parser.add_argument("--print-config", action="store_true", help="print the whole checked config as JSON and stop")
    parser.add_argument("--dry-run", action="store_true", help="say what would be built and stop")
    parser.add_argument("--force", action="store_true", help="rebuild what exists (jobs.pipeline: only what no longer matches)")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.print_config:
        run_and_exit(name, lambda: print(load_config(arguments.config, arguments.overrides).model_dump_json(indent=2)))
    options = Options(force if arguments.force else "no", arguments.dry_run)
    run_and_exit(name, lambda: run(load_config(arguments.config, arguments.overrides), options))


def run_and_exit(name: str, run: Callable[[], dict[str, Any] | None]) -> NoReturn:
    """Run a job, print its summary as JSON in one last line, and exit: 0, 2 for what a user can mend, 1 for a failure.

    Args:
        name: of the job.
        run: gives the summary; None prints none unless it fails.
    """
    summary: dict[str, Any] | None = {"job": name, "status": "failed"}
    code = 1
    try:
        found = run()
        summary = None if found is None else {"job": name, "status": "failed"} | found
        code = 0
    except Exception as error:
        if (message := _user_error(error)) is None:
            summary = {"job": name, "status": "failed", "error": f"{type(error).__name__}: {error}"}
            raise
        summary = {"job": name, "status": "failed", "error": message}
        print(f"error: {message}", file=sys.stderr, flush=True)
        code = 2
    finally:
        if summary is not None:
            print(json.dumps(summary, default=str), flush=True)
    sys.exit(code)
