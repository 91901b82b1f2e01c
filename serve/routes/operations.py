"""Routes for operators: liveness, readiness, metrics."""

import asyncio

from fastapi import Request, Response
from fastapi.responses import PlainTextResponse

from serve.metrics import CONTENT_TYPE
from serve.problems import not_ready
from serve.routes.shared import access, new_router, service_of
from serve.schemas import Health, Ready

router = new_router()


@router.get("/healthz")
@access("public")
async def health(request: Request) -> Health:
    """Say what this replica serves; for liveness probes."""
    name, run = service_of(request).version(None)
    tables = run.tables
    return Health(
        status="ok", model=name, policy=tables.policy_name, policy_digest=tables.policy_digest, num_items=run.trie.num_items
    )


@router.get("/readyz")
@access("public")
async def ready(request: Request) -> Ready:
    """Say whether versions are loaded and warm."""
    if not service_of(request).is_ready:
        raise not_ready()
    return Ready(status="ready")


@router.get("/metrics", response_class=PlainTextResponse)
@access("read")
async def metrics(request: Request) -> Response:
    """Return Prometheus metrics of all replicas."""
    return Response(await asyncio.to_thread(service_of(request).metrics.text), media_type=CONTENT_TYPE)
