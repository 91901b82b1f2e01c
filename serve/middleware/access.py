"""Who may use a route: declared beside the route, and looked up by the route that a request matches, never by its path.

    @router.post("/v1/items")
    @access("admin")
    async def add_item(...)

The gate finds the route as the router does, so a prefix before all paths (`root_path`) changes nothing.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

from starlette.routing import BaseRoute, Match
from starlette.types import Scope

Access = Literal["public", "read", "admin"]
"""Who may use a route: everyone without a key, any key, or a key with the role admin."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def access(who: Access) -> Callable[[Endpoint], Endpoint]:
    """Declare who may use the route of an endpoint; stands below the router's decorator."""

    def declare(endpoint: Endpoint) -> Endpoint:
        endpoint.__dict__["access"] = who
        return endpoint

    return declare


def declared_access(route: BaseRoute) -> Access | None:
    """Return what a route declares; None if it declares nothing."""
    return getattr(getattr(route, "endpoint", None), "access", None)


def find_route(routes: Iterable[BaseRoute], scope: Scope) -> BaseRoute | None:
    """Return the route that answers a request, as the router finds it; one of another method if none has the request's."""
    other_method = None
    for route in routes:
        match, _ = route.matches(scope)
        if match is Match.FULL:
            return route
        if match is Match.PARTIAL and other_method is None:
            other_method = route
    return other_method


def access_of(route: BaseRoute | None, method: str) -> Access:
    """Return who may ask: what the route declares; without a declaration a key is needed, and an admin's for changes."""
    declared = declared_access(route) if route is not None else None
    if declared is not None:
        return declared
    return "read" if route is None or method in SAFE_METHODS else "admin"
