"""The routes: the schemas check each request, a plain function answers it, and the schemas shape the reply."""

from fastapi import FastAPI

from serve import explorer
from serve.gate import Gate, KeyRing
from serve.problems import add_problem_handlers
from serve.routes import events, items, lists, operations, versions
from serve.service import Service


def build_api(service: Service, keys: KeyRing) -> FastAPI:
    """Build the ASGI application of one replica."""
    api = FastAPI(title="DIGR", description="Generative recommendation with semantic IDs.", version="1")
    api.state.service = service
    for topic in (lists, events, items, versions, operations):
        api.include_router(topic.router)
    explorer.mount(api)
    add_problem_handlers(api)
    arguments = service.arguments
    api.add_middleware(
        Gate,
        keys=keys,
        metrics=service.metrics,
        max_body_bytes=arguments.max_body_bytes,
        body_seconds=arguments.deadline_seconds,
    )
    return api
