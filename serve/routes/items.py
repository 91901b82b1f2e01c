"""Routes of the catalogue: items, their images and search, the tree of semantic IDs, and new items."""

import asyncio
from typing import Annotated

from fastapi import Query, Request, Response

from serve.browsing import find_item, search, show_item, show_level
from serve.images import item_image
from serve.item_schemas import MAX_SEARCH, AddedItem, FoundItems, Item, NewItem, SidLevel
from serve.routes.shared import ItemPath, Model, new_router, service_of

router = new_router()


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
    _, run = service_of(request).version(model)
    return await asyncio.to_thread(search, run, query, limit)


@router.post("/v1/items")
async def add_item(request: Request, body: NewItem) -> AddedItem:
    """Add an item: the frozen quantiser gives it a semantic ID, and no other item's changes. Needs an admin key."""
    return await service_of(request).add_item(body)


@router.get(
    "/v1/items/{item_id:path}/image",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}, "description": "PNG"}},
)
async def get_image(request: Request, item_id: ItemPath, model: Model = None) -> Response:
    """Return the item's own image as PNG."""
    service = service_of(request)
    _, run = service.version(model)
    uri = run.facts.table.take([find_item(run, item_id)], ["image_uri"])["image_uri"][0].as_py()
    sizes = service.arguments.max_image_bytes, service.arguments.max_image_side
    content = await asyncio.to_thread(item_image, item_id, uri, *sizes)
    return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=86400"})


@router.get("/v1/items/{item_id:path}")
async def get_item(request: Request, item_id: ItemPath, model: Model = None) -> Item:
    """Return all facts about an item."""
    return show_item(service_of(request).version(model)[1], item_id)


@router.get("/v1/sids")
async def get_sids(
    request: Request,
    prefix: Annotated[str, Query(max_length=100, pattern=r"^$|^[0-9]{1,9}(\.[0-9]{1,9})*$", description="Codes with dots.")] = "",
    model: Model = None,
) -> SidLevel:
    """Return the codes below a prefix of semantic IDs; an empty prefix is the root."""
    _, run = service_of(request).version(model)
    return await asyncio.to_thread(show_level, run, prefix)
