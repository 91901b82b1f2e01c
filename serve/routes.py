"""The routes: the schemas check each request, a plain function answers it, and the schemas shape the reply."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer

from serve import explorer
from serve.browsing import find_item, search, show_item, show_level
from serve.completion_schemas import CompletionReply, CompletionRequest
from serve.completions import complete
from serve.gate import Gate, KeyRing
from serve.images import item_image
from serve.item_schemas import MAX_SEARCH, AddedItem, FoundItems, Item, NewItem, SidLevel
from serve.metrics import CONTENT_TYPE
from serve.problems import PROBLEMS, add_problem_handlers, not_ready
from serve.recommending import answer_request, answer_requests
from serve.schemas import (
    ChangeDefault,
    Health,
    ItemId,
    Ready,
    RecommendBatch,
    RecommendBatchReply,
    RecommendReply,
    RecommendRequest,
    VersionName,
    Versions,
)
from serve.service import Service

# the gate checks keys before it reads any body; this only declares them in the OpenAPI document
router = APIRouter(responses=PROBLEMS, dependencies=[Depends(HTTPBearer(auto_error=False, description="API key"))])

Model = Annotated[VersionName | None, Query(description="Version to ask; the default one if not given.")]
ItemPath = Annotated[ItemId, Path(description="Item id.")]


def _service(request: Request) -> Service:
    return request.app.state.service


@router.post("/recommend", include_in_schema=False)
@router.post("/v1/recommend")
async def recommend(request: Request, body: RecommendRequest) -> RecommendReply:
    """List the k items most likely to come next, best first, with the interests that speak for each."""
    return await answer_request(_service(request), body)


@router.post("/v1/recommend/batch")
async def recommend_batch(request: Request, body: RecommendBatch) -> RecommendBatchReply:
    """Answer several requests; each has its own reply or problem."""
    return RecommendBatchReply(replies=await answer_requests(_service(request), body.requests))


@router.get("/v1/items")
async def find_items(
    request: Request,
    query: Annotated[
        str, Query(max_length=200, description="Beginnings of words of the title, or of a phrase of a canonical interest.")
    ] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_SEARCH)] = 10,
    model: Model = None,
) -> FoundItems:
    """Search titles and canonical interests while they are typed; without a query, list the most popular items."""
    _, run = _service(request).version(model)
    return await asyncio.to_thread(search, run, query, limit)


@router.post("/v1/items")
async def add_item(request: Request, body: NewItem) -> AddedItem:
    """Add an item: the frozen quantiser gives it a semantic ID, and no other item's changes. Needs an admin key."""
    return await _service(request).add_item(body)


@router.get(
    "/v1/items/{item_id:path}/image",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}, "description": "PNG"}},
)
async def get_image(request: Request, item_id: ItemPath, model: Model = None) -> Response:
    """Return the item's own image as PNG."""
    service = _service(request)
    _, run = service.version(model)
    uri = run.facts.table["image_uri"][find_item(run, item_id)].as_py()
    sizes = service.arguments.max_image_bytes, service.arguments.max_image_side
    content = await asyncio.to_thread(item_image, item_id, uri, *sizes)
    return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=86400"})


@router.get("/v1/items/{item_id:path}")
async def get_item(request: Request, item_id: ItemPath, model: Model = None) -> Item:
    """Return all facts about an item."""
    return show_item(_service(request).version(model)[1], item_id)


@router.get("/v1/sids")
async def get_sids(
    request: Request,
    prefix: Annotated[str, Query(max_length=100, pattern=r"^$|^[0-9]{1,9}(\.[0-9]{1,9})*$", description="Codes with dots.")] = "",
    model: Model = None,
) -> SidLevel:
    """Return the codes below a prefix of semantic IDs; an empty prefix is the root."""
    _, run = _service(request).version(model)
    return await asyncio.to_thread(show_level, run, prefix)


@router.get("/v1/models")
async def get_models(request: Request) -> Versions:
    """List the loaded versions, in the form of OpenAI's list of models."""
    return _service(request).describe()


@router.post("/v1/models")
async def change_default(request: Request, body: ChangeDefault) -> Versions:
    """Make another loaded version the default, or go back to the previous default. Needs an admin key."""
    return await _service(request).change_default(body)


@router.post("/v1/completions")
async def post_completions(request: Request, body: CompletionRequest) -> CompletionReply:
    """Complete a history of semantic IDs with semantic IDs of next items, in OpenAI's form."""
    return await complete(_service(request), body)


@router.get("/healthz")
async def health(request: Request) -> Health:
    """Say what this replica serves; for liveness probes."""
    name, run = _service(request).version(None)
    tables = run.tables
    return Health(
        status="ok", model=name, policy=tables.policy_name, policy_digest=tables.policy_digest, num_items=run.trie.num_items
    )


@router.get("/readyz")
async def ready(request: Request) -> Ready:
    """Say whether versions are loaded and warm."""
    if not _service(request).is_ready:
        raise not_ready()
    return Ready(status="ready")


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Return Prometheus metrics of all replicas."""
    return Response(await asyncio.to_thread(_service(request).metrics.text), media_type=CONTENT_TYPE)


def build_api(service: Service, keys: KeyRing) -> FastAPI:
    """Build the ASGI application of one replica."""
    api = FastAPI(title="DIGR", description="Generative recommendation with semantic IDs.", version="1")
    api.state.service = service
    api.include_router(router)
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
