"""The Ray Serve application: `serve run serve.app:app run_dir=runs/quickstart`, or `serve deploy serve/config.yaml`."""

import asyncio
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig

from serve.gate import KeyRing
from serve.routes import build_api
from serve.service import Service
from serve.settings import AppArguments, LiveSettings


@serve.deployment(
    # far above max_pending, which bounds the queue in a replica: requests that wait in Ray Serve's router are routed late
    max_ongoing_requests=1000,
    max_queued_requests=1000,
    backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
    graceful_shutdown_wait_loop_s=0.5,
    graceful_shutdown_timeout_s=30,
    ray_actor_options={"num_cpus": 1},
)
@serve.ingress()
class Recommender:
    """Answer requests from trained runs."""

    def __init__(self, arguments: AppArguments) -> None:
        if arguments.num_threads:
            torch.set_num_threads(arguments.num_threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        replica = serve.get_replica_context().replica_id.unique_id
        self.keys = KeyRing(arguments.keys_file)
        self.service = Service(arguments, device, replica)
        self._following: asyncio.Task | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Give Ray Serve the routes of this replica."""
        return build_api(self.service, self.keys)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load the versions of a new configuration; until they are loaded, the old ones answer."""
        await self.service.configure(LiveSettings.model_validate(user_config))
        if self._following is None:
            self._following = asyncio.create_task(self.service.follow_for_ever(self.keys.refresh))

    async def check_health(self) -> None:
        """Tell Ray Serve to replace this replica if it cannot follow the others any more."""
        if self._following is not None and self._following.done():
            raise RuntimeError("the task that follows the other replicas has ended; see the log")


def app(arguments: AppArguments) -> serve.Application:
    """Build the application.

    Raises:
        ValueError: no run directory is given.
    """
    resolved = arguments.resolved()
    live = resolved.live().model_dump()
    return Recommender.options(user_config=live).bind(resolved.fixed())  # type: ignore[attr-defined]
