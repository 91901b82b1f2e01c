"""How tests wait: for a condition, as long as a busy machine takes, but not for ever."""

import time
from collections.abc import Callable

CEILING_SECONDS = 900.0
"""Time for anything that must happen: far above what it takes beside many busy processes, so that only a hang reaches it."""
POLL_SECONDS = 30.0
"""Longest wait for one answer of something that is asked again and again until it is ready."""

PATIENT_RAY = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "900",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "900",
}
"""Environment in which Ray does not take a process for dead that only waits for its turn on a processor."""
SHARED_CORES = {
    # a waiting thread sleeps; otherwise it spins on the core that the other thread needs, and on a busy machine a step of two
    # threads takes ten times as long as one of a single thread
    "OMP_WAIT_POLICY": "PASSIVE",
    # vLLM would bind every engine to the first core, also those of tests that run at the same time
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # the model runs in the engine's own process, as it does on a GPU; on a CPU vLLM would start another one to bind its threads
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
"""Environment of processes that share few cores with other tests."""


def wait_until(holds: Callable[[], bool], explain: Callable[[], object] = lambda: "", pause_seconds: float = 0.05) -> None:
    """Wait until a condition holds.

    Args:
        explain: describes the state if it never does.
    """
    end = time.monotonic() + CEILING_SECONDS
    while not holds():
        assert time.monotonic() < end, f"not within {CEILING_SECONDS:g} s; {explain()}"
        time.sleep(pause_seconds)
