"""What every job shares: its options, its progress lines and the Ray it joins."""

import logging
import os
import time
from typing import Any, Literal, NamedTuple

from digr.config import Config


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
