"""How the page's files are served."""

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
