"""The route of events: what users did."""

from typing import Any

from fastapi import Request

from serve.contract.event_schemas import MAX_EVENTS, Event, EventsReply
from serve.contract.problems import no_state_dir
from serve.routes.shared import access, new_router, service_of

router = new_router()

_ONE: dict[str, Any] = Event.model_json_schema()
_BODY = {
    "required": True,
    "description": "One event, a list of them, or JSON lines with one in each.",
    "content": {
        "application/json": {"schema": {"anyOf": [_ONE, {"type": "array", "items": _ONE, "maxItems": MAX_EVENTS}]}},
    },
}


@router.post("/v1/events", openapi_extra={"requestBody": _BODY})
@access("read")
async def post_events(request: Request) -> EventsReply:
    """Take events. They are durable when the reply comes, and change the next list of their users, on every replica."""
    events = service_of(request).events
    if events is None:
        raise no_state_dir()
    return await events.post(await request.body())
