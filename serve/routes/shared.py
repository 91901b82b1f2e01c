"""What the routes of all topics share: the router with its problems, the service, and parameters."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.security import HTTPBearer

from serve.contract.problems import PROBLEMS
from serve.contract.schemas import ItemId, VersionName
from serve.middleware.access import access
from serve.middleware.callers import current_caller
from serve.service import Service

__all__ = ["ItemPath", "Model", "access", "charge", "new_router", "service_of"]

Model = Annotated[VersionName | None, Query(description="Version to ask; the default one if not given.")]
ItemPath = Annotated[ItemId, Path(description="Item id.")]


def new_router() -> APIRouter:
    """Return an empty router; the gate checks keys before it reads any body, this only declares them in the OpenAPI document."""
    return APIRouter(responses=PROBLEMS, dependencies=[Depends(HTTPBearer(auto_error=False, description="API key"))])


def charge(num_lists: int) -> None:
    """Count a request as this many against its key's rate.

    Raises:
        ProblemError: that is more than the key has left.
    """
    current_caller().charge(num_lists)


def service_of(request: Request) -> Service:
    """Return what the replica serves."""
    return request.app.state.service
