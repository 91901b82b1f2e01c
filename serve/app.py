"""The Ray Serve application: `serve run serve.app:app run_dir=runs/quickstart`, or `serve deploy serve/config.yaml`."""

from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig

from serve.middleware.callers import KeyRing
from serve.replicas.ray_board import RayBoard
from serve.replicas.replica import Replica
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
        context = serve.get_replica_context()
        board = RayBoard(f"digr-board-{context.app_name}")
        service = Service(arguments, device, context.replica_id.unique_id, board=board)
        self.replica = Replica(service, KeyRing(arguments.keys_file))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Give Ray Serve the routes of this replica."""
        return build_api(self.replica.service, self.replica.keys)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load the versions of a new configuration; until they are loaded, the old ones answer."""
        await self.replica.service.configure(LiveSettings.model_validate(user_config))
        self.replica.start()

    async def check_health(self) -> None:
        """Tell Ray Serve to replace this replica if it makes no lists or cannot follow the others any more."""
        self.replica.check_health()

    async def __del__(self) -> None:
        """End what runs beside the requests before Ray Serve takes the threads away."""
        if hasattr(self, "replica"):  # not where the start failed
            await self.replica.stop()


def app(arguments: AppArguments) -> serve.Application:
    """Build the application.

    Raises:
        ValueError: no run directory is given.
    """
    resolved = arguments.resolved()
    live = resolved.live().model_dump()
    return Recommender.options(user_config=live).bind(resolved.fixed())  # type: ignore[attr-defined]
