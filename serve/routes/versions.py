"""Routes of the versions: which are loaded, and which is the default."""

from fastapi import Request

from serve.contract.schemas import ChangeDefault, Versions
from serve.routes.shared import access, new_router, service_of

router = new_router()


@router.get("/v1/models")
@access("read")
async def get_models(request: Request) -> Versions:
    """List the loaded versions, in the form of OpenAI's list of models."""
    return service_of(request).describe()


@router.post("/v1/models")
@access("admin")
async def change_default(request: Request, body: ChangeDefault) -> Versions:
    """Make another loaded version the default, or go back to the previous default. Needs an admin key."""
    return await service_of(request).change_default(body)
