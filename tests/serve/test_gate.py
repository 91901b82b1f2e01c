"""Keys, rate limits and bounded bodies, before any route."""

import os

import pytest
import typer
from typer.testing import CliRunner

from serve.gate import KeyRing
from serve.keys import TokenBucket, find_key, make_key, print_key, read_keys, written
from serve.settings import AppArguments
from tests.serve.tiny_run import BEAM_WIDTH, serve_without_ray

BODY = {"history": ["item01"], "k": 1}


def _record(name: str, role: str, **more) -> tuple[str, str]:
    key, record = make_key(name, role)
    return key, written(record.model_copy(update=more))


@pytest.fixture(scope="module")
def keyed(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    (reader, first), (admin, second), (hasty, third) = (
        _record("reader", "read"),
        _record("boss", "admin"),
        _record("hasty", "read", requests_per_second=0.01, burst=2),
    )
    (folder / "keys.toml").write_text(first + second + third)
    arguments = AppArguments(
        run_dir=tiny_run.root,
        beam_width=BEAM_WIDTH,
        max_pending=1,
        keys_file=str(folder / "keys.toml"),
        state_dir=str(folder),
        max_body_bytes=2000,
    )
    client = serve_without_ray(arguments, peer="10.1.2.3")
    return client, {"reader": reader, "boss": admin, "hasty": hasty}


def _with(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_opens_the_routes_from_anywhere(keyed):
    client, keys = keyed
    assert client.post("/v1/recommend", json=BODY, headers=_with(keys["reader"])).status_code == 200


@pytest.mark.parametrize(
    "header", [{}, {"Authorization": "Bearer digr_wrong"}, {"Authorization": "Basic x"}, {"Authorization": "Bearer"}]
)
def test_without_a_valid_key_the_answer_is_401(keyed, header):
    reply = keyed[0].post("/v1/recommend", json=BODY, headers=header)
    assert (reply.status_code, reply.json()["type"], reply.headers["www-authenticate"]) == (401, "unauthorised", "Bearer")
    assert reply.json()["detail"] == "send `Authorization: Bearer <key>` with a key of this deployment"


def test_changes_need_an_admin_key(keyed):
    client, keys = keyed
    for path, body in (("/v1/items", {"item_id": "n", "title": "N"}), ("/v1/models", {"action": "roll_back"})):
        refused = client.post(path, json=body, headers=_with(keys["reader"]))
        assert (refused.status_code, refused.json()["type"]) == (403, "forbidden")
        assert refused.json()["detail"] == "this route needs an admin key, 'reader' is one for read"
        assert client.post(path, json={}, headers=_with(keys["boss"])).status_code == 422


def test_health_and_readiness_need_no_key(keyed):
    assert keyed[0].get("/healthz").status_code == 200
    assert keyed[0].get("/readyz").json() == {"status": "ready"}


def test_a_key_that_used_up_its_rate_is_told_when_to_come_again(keyed):
    client, keys = keyed
    statuses = [client.get("/v1/models", headers=_with(keys["hasty"])).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = client.get("/v1/models", headers=_with(keys["hasty"]))
    assert refused.json()["type"] == "rate-limited"
    assert 90 <= int(refused.headers["retry-after"]) <= 100
    assert "the key 'hasty' has used up its rate; try again in" in refused.json()["detail"]
    assert client.get("/v1/models", headers=_with(keys["reader"])).status_code == 200


def test_a_bucket_fills_at_its_rate():
    now = [0.0]
    bucket = TokenBucket(rate=2.0, burst=3, clock=lambda: now[0])
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]
    now[0] = 0.5
    assert [bucket.take(), bucket.take()] == [0, 0.5]
    now[0] = 1000.0
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]


def test_without_keys_only_this_machine_is_answered(tiny_run, client):
    assert client.post("/v1/recommend", json=BODY).status_code == 200
    outside = serve_without_ray(AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH, max_pending=1), peer="10.1.2.3")
    reply = outside.post("/v1/recommend", json=BODY)
    assert (reply.status_code, reply.json()["type"]) == (401, "unauthorised")
    assert reply.json()["detail"].startswith("this deployment has no keys, so it answers only on 127.0.0.1; set keys_file")


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": ""}]
)
def test_without_keys_a_page_of_another_site_is_not_answered(client, headers):
    assert client.post("/v1/recommend", json=BODY, headers=headers).status_code == 401
    assert client.post("/v1/recommend", json=BODY, headers={"Origin": "http://localhost:8000"}).status_code == 200


def test_a_large_body_is_refused_by_its_declared_length_and_while_it_arrives(keyed):
    client, keys = keyed
    declared = client.post("/v1/recommend", content=b"x" * 2001, headers=_with(keys["boss"]))
    sent = []

    def stream():
        for _ in range(1000):
            sent.append(1)
            yield b"x" * 1000

    arriving = client.post("/v1/recommend", content=stream(), headers=_with(keys["boss"]))
    for reply in (declared, arriving):
        assert (reply.status_code, reply.json()["type"]) == (413, "body-too-large")
        assert reply.json()["detail"] == "a body may have 2000 bytes; send less at once"


def test_a_stored_key_cannot_be_used_as_a_key():
    key, record = make_key("x", "read")
    other, _ = make_key("x", "read")
    assert find_key([record], key) == record
    assert find_key([record], other) is None
    assert find_key([record], record.hash) is None
    assert key not in record.model_dump_json()


def _keys(*words: str):
    command = typer.Typer(rich_markup_mode=None)
    command.command()(print_key)
    return CliRunner().invoke(command, list(words))


def test_the_command_makes_a_key_and_its_record(tmp_path):
    made = _keys("shop", "--role", "admin")
    assert made.exit_code == 0
    (tmp_path / "keys.toml").write_text(made.stdout)
    record = find_key(read_keys(tmp_path / "keys.toml"), made.stderr.split()[-1])
    assert (record.name, record.role) == ("shop", "admin")
    (tmp_path / "keys.toml").write_text(_keys("a\x1b[31m").stdout)
    assert [(record.name, record.role) for record in read_keys(tmp_path / "keys.toml")] == [("a\x1b[31m", "read")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing argument 'NAME'"),
        (["x" * 65], "String should have at most 64 characters"),
        (["shop", "--role", "owner"], "'owner' is not one of 'read', 'admin'"),
    ],
)
def test_a_wrong_name_or_role_makes_no_key(words, message):
    found = _keys(*words)
    assert (found.exit_code, found.stdout) == (2, "")
    assert message in found.stderr and "digr_" not in found.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; make keys with `digr keys NAME`"),
        ("keys = 3 3", "not valid TOML"),
        ("keys = []", "keys: List should have at least 1 item"),
        ('[[keys]]\nname = "x"\nrole = "owner"', "keys.0.role: Input should be 'read' or 'admin'"),
    ],
)
def test_a_wrong_key_file_is_an_error(tmp_path, text, message):
    if text is not None:
        (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        KeyRing(str(tmp_path / "keys.toml"))


def test_a_key_taken_out_of_the_file_is_of_no_use_any_more(tmp_path):
    (_, first), (_, second) = _record("one", "read"), _record("two", "read")
    path = tmp_path / "keys.toml"
    path.write_text(first + second)
    ring = KeyRing(str(path))
    path.write_text(second)
    os.utime(path, (1, 1))
    ring.refresh()
    assert [record.name for record in ring.records] == ["two"]
