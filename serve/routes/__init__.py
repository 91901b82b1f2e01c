"""The routes: the schemas check each request, a plain function answers it, and the schemas shape the reply."""

from fastapi import FastAPI

from serve import explorer
from serve.contract.problems import add_problem_handlers
from serve.middleware.access import access
from serve.middleware.callers import KeyRing
from serve.middleware.gate import Gate
from serve.routes import events, items, lists, operations, versions
from serve.service import Service


def build_api(service: Service, keys: KeyRing) -> FastAPI:
    """Build the ASGI application of one replica."""
    about = "Generative recommendation with semantic IDs."
    api = FastAPI(title="DIGR", description=about, version="1", docs_url=None, redoc_url=None)
    for route in api.routes:  # openapi.json
        access("public")(route.endpoint)  # type: ignore[attr-defined]
    api.state.service = service
    for topic in (lists, events, items, versions, operations):
        api.include_router(topic.router)
    explorer.mount(api)
    add_problem_handlers(api)
    arguments = service.arguments
    api.add_middleware(
        Gate,
        routes=api.router.routes,
        keys=keys,
        metrics=service.metrics,
        max_body_bytes=arguments.max_body_bytes,
        body_seconds=arguments.deadline_seconds,
    )
    return api
