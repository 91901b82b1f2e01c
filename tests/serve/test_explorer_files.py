"""How the page's files are served."""

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serve import explorer


def test_the_files_come_with_a_strict_policy_and_nothing_else_is_served():
    api = FastAPI()
    explorer.mount(api)
    client = TestClient(api)
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in page.headers["content-security-policy"]
    assert client.get("/", headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    for name in explorer.read_assets():
        assert client.get(f"/explorer/{name}").status_code == 200
        assert client.head(f"/explorer/{name}").status_code == 200
    for name in ("__init__.py", "../app.py", "%2e%2e%2fapp.py", "..%2Fapp.py", "nothing.js"):
        assert client.get(f"/explorer/{name}").status_code == 404


def _pages(client) -> dict[str, str]:
    """Return what a browser loads from here by path, but Swagger UI's own two files."""
    names = [name for name in explorer.read_assets() if name not in explorer.SWAGGER_UI]
    return {path: client.get(path).text for path in ("/", "/docs", *(f"/explorer/{name}" for name in names))}


def test_no_page_names_another_host(client):
    """`/docs` loaded scripts of another host beside the key that is typed into it."""
    for path, text in _pages(client).items():
        named = set(re.findall(r"(?:[a-z]+:)?//[\w.-]+\.\w+", text.replace("http://www.w3.org/", "")))
        assert named == set(), (path, named)
    linked = re.findall(r'(?:src|href)="([^"#]+)"', client.get("/docs").text)
    assert [link for link in linked if client.get(f"/{link}").status_code != 200] == []
    assert {"explorer/swagger-ui-bundle.js", "explorer/swagger-ui.css", "explorer/docs.js"} <= set(linked)


@pytest.mark.parametrize("path", ["/", "/docs", "/explorer/docs.js", "/explorer/swagger-ui-bundle.js"])
def test_a_browser_loads_and_asks_nothing_but_this_server_for_a_page(client, path):
    policy = dict(rule.split(" ", 1) for rule in client.get(path).headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    for rule, allowed in policy.items():
        assert set(allowed.split()) <= {"'none'", "'self'", "data:", "blob:"}, rule
    assert (policy["script-src"], policy["connect-src"], policy["style-src"]) == ("'self'",) * 3


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/openapi.json", 200),
        ("GET", "/v1/items/item01", 200),
        ("GET", "/v1/items/ghost", 404),
        ("GET", "/nowhere", 404),
        ("POST", "/healthz", 405),
        ("POST", "/v1/recommend", 422),
        ("GET", "/metrics", 200),
        ("GET", "/docs", 200),
    ],
)
def test_every_reply_tells_browsers_to_run_nothing_in_it(client, method, path, status):
    reply = client.request(method, path, json=None if method == "GET" else {})
    assert reply.status_code == status
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
