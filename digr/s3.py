"""The S3 client of this process. Making one is slow and must not happen in two threads at once; any thread may use it."""

import os
import threading
from functools import lru_cache
from typing import Any

TIMEOUT_SECONDS = 20.0
_LOCK = threading.Lock()


def s3_client() -> Any:
    """Return the boto3 client that all of this process share.

    It waits at most 20 seconds for a connection or for the next bytes, and does not try again: only its callers know what a
    second try would mean. A changed variable AWS_* gives a new client.
    """
    with _LOCK:
        return _make_client(tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))))


@lru_cache(maxsize=1)
def _make_client(environment: tuple[tuple[str, str], ...]) -> Any:
    import boto3
    from botocore.config import Config

    waits = {"connect_timeout": TIMEOUT_SECONDS, "read_timeout": TIMEOUT_SECONDS, "max_pool_connections": 32}
    return boto3.session.Session().client("s3", config=Config(retries={"total_max_attempts": 1}, **waits))
