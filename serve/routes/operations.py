"""Routes for operators: liveness, readiness, metrics."""

import asyncio

from fastapi import Request, Response
from fastapi.responses import PlainTextResponse

from serve.contract.problems import decoder_down, metrics_incomplete, not_ready
from serve.contract.schemas import Health, Ready
from serve.replicas.metrics import CONTENT_TYPE
from serve.routes.shared import access, new_router, service_of
from serve.service import Service

router = new_router()


@router.get("/healthz")
@access("public")
async def health(request: Request) -> Health:
    """Say what this replica serves; for liveness probes."""
    service = service_of(request)
    name, run = service.version(None)
    _check_decoder(service)
    tables = run.tables
    return Health(
        status="ok", model=name, policy=tables.policy_name, policy_digest=tables.policy_digest, num_items=run.trie.num_items
    )


def _check_decoder(service: Service) -> None:
    if trouble := service.line.trouble():
        raise decoder_down(trouble)


@router.get("/readyz")
@access("public")
async def ready(request: Request) -> Ready:
    """Say whether versions are loaded and warm."""
    service = service_of(request)
    if not service.is_ready:
        raise not_ready()
    _check_decoder(service)
    return Ready(status="ready")


@router.get("/metrics", response_class=PlainTextResponse)
@access("read")
async def metrics(request: Request) -> Response:
    """Return Prometheus metrics of all replicas."""
    service = service_of(request)
    try:
        reports = await service.board.reports()
    except ConnectionError as error:
        raise metrics_incomplete(str(error)) from None
    return Response(await asyncio.to_thread(service.metrics.text, reports), media_type=CONTENT_TYPE)
