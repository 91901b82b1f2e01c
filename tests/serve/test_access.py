"""Who may use which route, under every prefix."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serve.keys import make_key, written
from serve.middleware.access import access, access_of, declared_access, find_route
from serve.settings import AppArguments
from tests.serve.tiny_run import BEAM_WIDTH, serve_without_ray

ROUTES = """
    GET    /                             public
    HEAD   /                             public
    GET    /docs                         public
    HEAD   /docs                         public
    GET    /explorer/{name}              public
    HEAD   /explorer/{name}              public
    GET    /healthz                      public
    GET    /metrics                      read
    GET    /openapi.json                 public
    HEAD   /openapi.json                 public
    GET    /readyz                       public
    POST   /recommend                    read
    POST   /v1/completions               read
    POST   /v1/events                    read
    GET    /v1/items                     read
    POST   /v1/items                     admin
    POST   /v1/items/bulk                admin
    PATCH  /v1/items/{item_id:path}       admin
    DELETE /v1/items/{item_id:path}       admin
    GET    /v1/items/{item_id:path}       read
    GET    /v1/items/{item_id:path}/image read
    GET    /v1/models                    read
    POST   /v1/models                    admin
    POST   /v1/recommend                 read
    POST   /v1/recommend/batch           read
    GET    /v1/sids                      read
    POST   /v1/similar                   read
"""
"""Method, path, and who may use it: all there are. Whoever adds a route adds it here too."""
NO_ROUTES = ["/v1", "/v1/models/", "/V1/models", "//v1/models", "/healthz/", "/explorer/a/b", "/docs/oauth2-redirect", "/redoc"]
PREFIXES = ["", "/shop", "/shop/v1", "/v1/items"]


def _listed() -> set[tuple[str, ...]]:
    return {tuple(line.split()) for line in ROUTES.strip().splitlines()}


@pytest.fixture(scope="module")
def keyed(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("access")
    made = {role: make_key(role, role) for role in ("read", "admin")}
    fast = {"requests_per_second": 1e9, "burst": 10**9}
    (folder / "keys.toml").write_text("".join(written(record.model_copy(update=fast)) for _, record in made.values()))
    arguments = AppArguments(
        run_dir=tiny_run.root, beam_width=BEAM_WIDTH, max_pending=1, keys_file=str(folder / "keys.toml"), state_dir=str(folder)
    )
    client = serve_without_ray(arguments, peer="10.1.2.3")
    headers = {role: {"Authorization": f"Bearer {key}"} for role, (key, _) in made.items()} | {None: {}}
    return client.service_api, headers


def test_every_route_declares_who_may_use_it_and_is_listed_here(keyed):
    api, _ = keyed
    declared = {(method, route.path, str(declared_access(route))) for route in api.routes for method in route.methods}
    assert declared == _listed()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_each_route_lets_in_whom_it_names_and_nobody_else(keyed, prefix):
    """A read key could promote and add items under any `route_prefix` but `/`, because paths were compared as strings."""
    api, headers = keyed
    client = TestClient(api, base_url="http://10.0.0.1", root_path=prefix, raise_server_exceptions=False)
    for method, path, who in _listed():
        asked = f"{prefix}{path.replace('{item_id:path}', 'a/b').replace('{name}', 'x')}"
        found = {
            role: client.request(method, asked, headers=with_key, content=b"{").status_code for role, with_key in headers.items()
        }
        allowed = {"public": (None, "read", "admin"), "read": ("read", "admin"), "admin": ("admin",)}[who]
        refused = {role: status in (401, 403) for role, status in found.items()}
        assert refused == {role: role not in allowed for role in headers}, (method, asked, found)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("path", NO_ROUTES)
def test_what_is_no_route_needs_a_key(keyed, prefix, path):
    api, headers = keyed
    client = TestClient(api, base_url="http://10.0.0.1", root_path=prefix, follow_redirects=False)
    for method in ("GET", "POST", "DELETE"):
        assert client.request(method, prefix + path, headers=headers[None]).status_code == 401
        assert client.request(method, prefix + path, headers=headers["read"]).status_code in (307, 404, 405, 422)


def test_a_route_that_declares_nothing_needs_a_key_and_an_admins_to_change_anything():
    api = FastAPI(openapi_url=None)

    @api.api_route("/forgotten", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def forgotten() -> None: ...

    @api.get("/open")
    @access("public")
    async def opened() -> None: ...

    def who(method: str, path: str) -> str:
        scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
        return access_of(find_route(api.routes, scope), method)

    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
    assert [who(method, "/forgotten") for method in methods] == ["read", "read", "admin", "admin", "admin", "admin"]
    assert (who("GET", "/open"), who("DELETE", "/open"), who("GET", "/nowhere")) == ("public", "public", "read")
