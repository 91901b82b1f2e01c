"""The S3 clients of this process. Making one is slow and must not happen in two threads at once; any thread may use it."""

import os
import threading
from functools import lru_cache
from typing import Any

TIMEOUT_SECONDS = 20.0
_LOCK = threading.Lock()


def s3_client(tries: int = 1) -> Any:
    """Return the boto3 client that all of this process share who want as many tries.

    It waits at most 20 seconds for a connection or for the next bytes. A changed variable AWS_* gives a new client.

    Args:
        tries: of each request, with growing pauses; 1 where only the caller knows what a second try would mean.
    """
    with _LOCK:
        return _make_client(tries, tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


@lru_cache(maxsize=4)
def _make_client(tries: int, environment: tuple[tuple[str, str], ...]) -> Any:
    import boto3
    from botocore.config import Config

    waits = {"connect_timeout": TIMEOUT_SECONDS, "read_timeout": TIMEOUT_SECONDS, "max_pool_connections": 32}
    return boto3.session.Session().client("s3", config=Config(retries={"mode": "standard", "total_max_attempts": tries}, **waits))
