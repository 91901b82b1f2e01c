"""The page at `/`: look at a history's recommendations, their reasons and their place in the tree of semantic IDs; and `/docs`.

Plain files, no build step and no other host; the browser enforces it by the Content-Security-Policy they come with. They hold
nothing of a run, so they need no API key; the page asks the endpoint for everything it shows, with the key its user types.
"""

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response

from serve.middleware.access import access

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DOCS_POLICY = POLICY.replace("img-src 'self' blob:", "img-src 'self' data:")
"""Swagger UI draws its icons from data in its style sheet."""
SWAGGER_UI = ("swagger-ui-bundle.js", "swagger-ui.css")
"""Files of Swagger UI, as the package fastapi-offline brings them."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Asset(NamedTuple):
    """A file of the page."""

    content: bytes
    media_type: str
    tag: str
    """ETag: equal content, equal tag."""


def read_assets() -> dict[str, Asset]:
    """Read the page's files by name; a request picks from these, so no part of it is ever used as a path."""
    own = [file for file in sorted(Path(__file__).parent.iterdir()) if file.suffix in MEDIA_TYPES]
    contents = {file.name: file.read_bytes() for file in own}
    contents |= {name: (files("fastapi_offline") / "static" / name).read_bytes() for name in SWAGGER_UI}
    return {name: _asset(content, MEDIA_TYPES[Path(name).suffix]) for name, content in contents.items()}


def _asset(content: bytes, media_type: str) -> Asset:
    return Asset(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def mount(api: FastAPI) -> None:
    """Add the pages to an application: `/`, `/docs` and `/explorer/<file>`, for GET and HEAD."""
    assets, router = read_assets(), APIRouter(include_in_schema=False)

    def send(request: Request, name: str, policy: str = POLICY) -> Response:
        if name not in assets:
            raise HTTPException(404)
        asset, headers = assets[name], HEADERS | {"Content-Security-Policy": policy, "ETag": assets[name].tag}
        if request.headers.get("if-none-match") == asset.tag:
            return Response(status_code=304, headers=headers)
        return Response(asset.content, media_type=asset.media_type, headers=headers)

    @router.api_route("/", methods=["GET", "HEAD"])
    @access("public")
    async def page(request: Request) -> Response:
        return send(request, "index.html")

    @router.api_route("/docs", methods=["GET", "HEAD"])
    @access("public")
    async def docs(request: Request) -> Response:
        return send(request, "docs.html", DOCS_POLICY)

    @router.api_route("/explorer/{name}", methods=["GET", "HEAD"])
    @access("public")
    async def file(request: Request, name: str) -> Response:
        return send(request, name)

    api.include_router(router)
