"""The Ray Serve application: `serve run serve.app:app run_dir=runs/quickstart`, or `serve deploy serve/config.yaml`."""

import asyncio

import torch
from fastapi import FastAPI
from ray import serve

from digr.policy.beam import Recommendation
from serve.catalogue import load_run
from serve.decoding import Job, decode
from serve.routes import build_api
from serve.service import Service
from serve.settings import AppArguments

BATCH_SIZE, BATCH_WAIT_SECONDS = 32, 0.005
"""Requests decoded together, and how long the first of them waits for others."""


@serve.deployment(max_ongoing_requests=128, ray_actor_options={"num_cpus": 1})
@serve.ingress()
class Recommender:
    """Answer requests from trained runs."""

    def __init__(self, arguments: AppArguments) -> None:
        if arguments.num_threads:
            torch.set_num_threads(arguments.num_threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        versions = {name: load_run(version, device) for name, version in arguments.versions().items()}
        self.service = Service(arguments, versions, self._decode)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Give Ray Serve the routes of this replica."""
        return build_api(self.service)

    @serve.batch(max_batch_size=BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def _decode(self, jobs: list[Job]) -> list[Recommendation | Exception]:
        """Decode waiting requests together, off the event loop."""
        return await asyncio.to_thread(decode, jobs)


def app(arguments: AppArguments) -> serve.Application:
    """Build the application.

    Raises:
        ValueError: no run directory is given.
    """
    return Recommender.bind(arguments.model_copy(update={"models": arguments.versions()}))  # type: ignore[attr-defined]
