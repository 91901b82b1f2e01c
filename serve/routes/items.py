"""Routes of the catalogue: items, their images and search, the tree of semantic IDs, and new items."""

import asyncio
from typing import Annotated

from fastapi import Header, Query, Request, Response

from serve.contract.change_problems import not_json_lines
from serve.contract.item_schemas import MAX_SEARCH, AddedItem, BulkResult, FoundItems, Item, ItemChange, NewItem, SidLevel
from serve.items.browsing import find_item, search, show_item, show_level
from serve.items.bulk import JSON_LINES, change_lines
from serve.items.changing import change_catalogue, check_not_deleted, sids_of
from serve.items.deciding import ItemRequest, Outcome
from serve.items.images import FRESH_SECONDS
from serve.routes.shared import ItemPath, Model, access, new_router, service_of
from serve.service import Service

router = new_router()
LINES = {"type": "array", "items": {"$ref": "#/components/schemas/NewItem"}, "description": "One line each."}


@router.get("/v1/items")
@access("read")
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
@access("admin")
async def add_item(request: Request, body: NewItem) -> AddedItem:
    """Add an item: the frozen quantiser gives it a semantic ID, and no other item's changes. Needs an admin key."""
    service = service_of(request)
    outcome = await _do(service, ItemRequest("add", body.item_id, body.model_dump(exclude={"item_id"})))
    return AddedItem(item_id=body.item_id, sids=sids_of(service, body.item_id), is_new=outcome.status == "added")


async def _do(service: Service, wanted: ItemRequest) -> Outcome:
    (outcome,) = await change_catalogue(service, [wanted])
    if outcome.problem is not None:
        raise outcome.problem
    return outcome


@router.post(
    "/v1/items/bulk",
    response_class=Response,
    responses={200: {"model": BulkResult, "content": {JSON_LINES: {}}, "description": "One result per line, in order"}},
    openapi_extra={"requestBody": {"required": True, "content": {JSON_LINES: {"schema": LINES}}}},
)
@access("admin")
async def add_items(request: Request) -> Response:
    """Add or change an item per JSON line; a line that fails stops no other. Needs an admin key.

    A line of an unknown item is a whole new item; one of a known item has the facts that change; with `"delete": true` it is
    deleted.
    """
    form = request.headers.get("content-type", "none")
    if form.partition(";")[0].strip().lower() not in (JSON_LINES, "application/jsonl"):
        raise not_json_lines(form)
    results = await change_lines(service_of(request), await request.body())
    return Response("".join(f"{result.model_dump_json(exclude_none=True)}\n" for result in results), media_type=JSON_LINES)


@router.get(
    "/v1/items/{item_id:path}/image",
    response_class=Response,
    responses={
        200: {"content": {"image/png": {}}, "description": "PNG"},
        304: {"description": "The image is still the one of If-None-Match"},
    },
)
@access("read")
async def get_image(
    request: Request,
    item_id: ItemPath,
    model: Model = None,
    if_none_match: Annotated[str | None, Header(max_length=1000)] = None,
) -> Response:
    """Return the item's own image as PNG."""
    service = service_of(request)
    _, run = service.version(model)
    check_not_deleted(service, item_id)
    uri = run.facts.table.take([find_item(run, item_id)], ["image_uri"])["image_uri"][0].as_py()
    image = await service.images.get(item_id, uri, run.tables.image_folders)
    headers = {"Cache-Control": f"private, max-age={FRESH_SECONDS}", "ETag": image.etag}
    known = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    if image.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(image.content, media_type="image/png", headers=headers)


@router.get("/v1/items/{item_id:path}")
@access("read")
async def get_item(request: Request, item_id: ItemPath, model: Model = None) -> Item:
    """Return all facts about an item."""
    service = service_of(request)
    check_not_deleted(service, item_id)
    return show_item(service.version(model)[1], item_id)


@router.patch("/v1/items/{item_id:path}")
@access("admin")
async def change_item(request: Request, item_id: ItemPath, body: ItemChange) -> Item:
    """Change facts of an item on all replicas; it keeps its semantic ID and its interests. Needs an admin key."""
    service = service_of(request)
    find_item(service.version(None)[1], item_id)  # it can be shown then
    await _do(service, ItemRequest("change", item_id, body.model_dump(exclude_unset=True)))
    return show_item(service.version(None)[1], item_id)


@router.delete("/v1/items/{item_id:path}", status_code=204)
@access("admin")
async def delete_item(request: Request, item_id: ItemPath) -> None:
    """Take an item out of all lists; histories that contain it still work. Deleting again changes nothing. Needs an admin key."""
    await _do(service_of(request), ItemRequest("delete", item_id, {}))


@router.get("/v1/sids")
@access("read")
async def get_sids(
    request: Request,
    prefix: Annotated[str, Query(max_length=100, pattern=r"^$|^[0-9]{1,9}(\.[0-9]{1,9})*$", description="Codes with dots.")] = "",
    model: Model = None,
) -> SidLevel:
    """Return the codes below a prefix of semantic IDs; an empty prefix is the root."""
    _, run = service_of(request).version(model)
    return await asyncio.to_thread(show_level, run, prefix)
