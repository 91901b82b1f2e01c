"""The client in Python and its commands over real HTTP, without Ray."""

import json
from collections.abc import Callable, Iterator

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from typer.testing import CliRunner, Result

from serve.asking import item_commands
from serve.asking.command_line import app, read_steer
from serve.asking.terminal import plain
from serve.client import Client, EndpointError
from serve.contract.item_schemas import NewItem
from serve.contract.schemas import ItemFilter, Steer
from tests.patience import CEILING_SECONDS
from tests.serve.explorer_server import HOSTILE, serve_two_versions
from tests.serve.http_server import serve_over_http
from tests.serve.tiny_run import without_id


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with serve_two_versions(tmp_path_factory.mktemp("runs")) as address:
        yield address


@pytest.fixture(scope="module")
def run(url) -> Callable[..., Result]:
    return lambda *words: CliRunner().invoke(app, list(words), env={"DIGR_URL": url})


def _answering(content: str, status: int = 200, media_type: str = "application/json") -> FastAPI:
    """Build a server that answers everything with one text."""
    api = FastAPI()

    @api.get("/{path:path}")
    @api.post("/{path:path}")
    async def answer() -> Response:
        return Response(content, status, media_type=media_type)

    return api


def _rows(text: str) -> list[list[str]]:
    """Read a table's rows below its header; two blanks or more stand between cells."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()[1:]]


def test_the_client_recommends_with_titles_scores_and_reasons(url):
    items = Client(url).recommend(history=["item05", "item06"], k=3, model="two")
    body = {"history": ["item05", "item06"], "k": 3, "model": "two"}
    expected = httpx.post(f"{url}/v1/recommend", json=body, timeout=CEILING_SECONDS).json()["items"]
    assert [item.model_dump() for item in items] == expected
    assert [item.title for item in items] == [f"Title {item.item_id}" for item in items]
    assert [item.item_id for item in Client(url).recommend(["item05"], allow=ItemFilter(item_ids=["item10"]))] == ["item10"]


def test_a_problem_is_an_exception_with_its_title_and_detail(url):
    with pytest.raises(
        EndpointError, match=r"^The history names items .*: 1 items of the history are not in the catalogue"
    ) as caught:
        Client(url).recommend(["item05", "ghost"], unknown="refuse")
    error = caught.value
    assert (error.title, error.status) == ("The history names items that are not in the catalogue", 422)
    assert error.detail == '1 items of the history are not in the catalogue; leave them out, or send unknown="ignore"'
    assert error.problem.unknown_items == ["ghost"]


@pytest.mark.parametrize(
    ("content", "status", "media_type", "message"),
    [
        (
            "<p>",
            404,
            "text/html",
            r"^404 Not Found: .*/v1/models answered 404 in a form that is not DIGR's; is the address",
        ),
        ("", 301, "text/html", r"^301 Moved Permanently: .*/v1/models answered 301 in a form that is not DIGR's"),
        (
            "<p>",
            200,
            "text/html",
            r"^Not an answer of DIGR's endpoint: .* is no Versions \(the whole answer: Invalid JSON",
        ),
        ('{"a": 1}', 200, "application/json", r"answered what is no Versions \(data: Field required\); is the address right\?$"),
        ("{}", 500, "application/problem+json", r"answered what is no Problem \(type: Field required\); is the address right\?$"),
    ],
)
def test_another_server_is_told_from_the_endpoint(content, status, media_type, message):
    with (
        serve_over_http(_answering(content, status, media_type)) as address,
        pytest.raises(EndpointError, match=message) as caught,
    ):
        Client(address).models()
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:8000", "127.0.0.1:8000: not an address of a server .*; give one such as http://127.0.0.1:8000"),
        ("http://127.0.0.1:port", r"http://127.0.0.1:port: not an address of a server \(Invalid port: .port"),
    ],
)
def test_what_is_no_address_is_an_error(url, message):
    with pytest.raises(ValueError, match=message):
        Client(url).models()


@pytest.mark.parametrize("key", ["digr_abc\n", "digr_é"])
def test_an_impossible_key_is_refused_without_being_shown(key):
    with pytest.raises(ValueError, match=r"^the API key has characters that no key has, such as a line break") as caught:
        Client(key=key)
    assert "abc" not in str(caught.value) and "é" not in str(caught.value)
    result = CliRunner().invoke(app, ["models", "list"], env={"DIGR_API_KEY": key})
    assert result.exit_code == 2 and "abc" not in result.output and "Traceback" not in result.output


def test_ask_prints_the_list_of_a_history_or_a_user(run, url):
    found = run("ask", "--history", "item05", "item06", "--k", "3", "--model", "two")
    assert (found.exit_code, found.stderr) == (0, "")
    body = {"history": ["item05", "item06"], "k": 3, "model": "two"}
    items = httpx.post(f"{url}/v1/recommend", json=body, timeout=CEILING_SECONDS).json()["items"]
    assert found.stdout.splitlines()[0].split() == ["#", "score", "item", "title", "because"]
    assert _rows(found.stdout) == [
        [
            str(place),
            f"{item['score']:.3f}",
            item["item_id"],
            item["title"],
            *([", ".join(item["reasons"])] if item["reasons"] else []),
        ]
        for place, item in enumerate(items, 1)
    ]
    found = run("ask", "--user", "nobody", "--k", "2")
    assert found.exit_code == 0
    assert [row[1:3] for row in _rows(found.stdout)] == [["-", "item05"], ["-", "item06"]]
    assert found.stderr == "nothing of this history is known: the most popular items\n"


def test_json_is_the_reply_of_the_server(run, url):
    found = run("ask", "--history", "item05", "item06", "--k", "3", "--json")
    body = {"history": ["item05", "item06"], "k": 3, "unknown": "refuse"}
    reply = httpx.post(f"{url}/v1/recommend", json=body, timeout=CEILING_SECONDS).json()
    assert without_id(json.loads(found.stdout)) == without_id(reply)
    for words, path in [
        (["items", "search", "title", "item1"], "/v1/items?query=title item1"),
        (["items", "show", "item10"], "/v1/items/item10"),
        (["models", "list"], "/v1/models"),
    ]:
        found = run(*words, "--json")
        assert len(found.stdout.splitlines()) == 1
        assert json.loads(found.stdout) == httpx.get(f"{url}{path}", timeout=CEILING_SECONDS).json()


def test_unknown_items_are_an_error_unless_they_may_be_left_out(run):
    refused = run("ask", "--history", "item05", "ghost")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == (
        "error: The history names items that are not in the catalogue: 1 items of the history are not in the catalogue; "
        'leave them out, or send unknown="ignore": ghost\n'
    )
    found = run("ask", "--history", "item05", "ghost", "--ignore-unknown")
    assert len(_rows(found.stdout)) == 10 and found.stderr == "not in the catalogue, left out: ghost\n"


def test_a_history_may_be_left_out_of_the_list(run):
    listed = json.loads(run("ask", "item05", "item06", "--json", "--k", "12").stdout)["items"]
    seen = {item["item_id"] for item in listed[:2]}
    others = json.loads(run("ask", *sorted(seen), "--exclude-history", "--json", "--k", "12").stdout)["items"]
    assert len(others) == 12 and not seen & {item["item_id"] for item in others}


def test_wishes_go_to_the_server_with_their_weights(run):
    refused = run("ask", "item05", "--steer", "interest 1=-1")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: Nothing to steer: this version has no ranker, so its lists cannot be steered")
    assert read_steer("long hikes") == Steer(text="long hikes", weight=1)
    assert read_steer("long hikes=-1") == Steer(text="long hikes", weight=-1)
    assert read_steer("5") == Steer(text="5", weight=1)
    assert read_steer("e=mc2") == Steer(text="e=mc2", weight=1)
    assert (
        run("ask", "item05", "--steer", "x=11").stderr == "error: weight: Input should be less than or equal to 10, found 11.0\n"
    )


def test_items_are_searched_and_shown(run):
    found = run("items", "search", "title", "item1", "--limit", "2")
    assert found.exit_code == 0
    rows = _rows(found.stdout)
    assert len(rows) == 2 and all(row[1].startswith("Title item1") for row in rows)
    shown = dict(_rows(run("items", "show", "item10").stdout))
    assert (shown["item_id"], shown["title"], shown["categories"]) == ("item10", "Title item10", "all, c2")
    refused = run("items", "show", "a/../b?c")
    assert refused.exit_code == 2
    assert "item 'a/../b?c' is not in the catalogue" in refused.stderr


def test_models_are_listed_with_the_default_one_marked(run):
    found = run("models", "list")
    assert found.exit_code == 0
    one, two = _rows(found.stdout)
    assert one[:3] == ["*", "one", "policy_sft"] and one[4:] == ["missing", "60"]
    assert two[:2] == ["two", "policy_sft"]


def test_the_default_version_is_changed_and_goes_back(run):
    assert [row[0] for row in _rows(run("models", "promote", "two").stdout)] == ["one", "*"]
    assert [row[0] for row in _rows(run("models", "roll-back").stdout)] == ["*", "two"]
    refused = run("models", "promote", "three")
    assert refused.exit_code == 2
    assert refused.stderr == "error: No such model: there is no model 'three'; loaded are one, two\n"


def test_add_puts_an_item_into_every_version(run):
    words = ["--title", "A brass lamp", "--category", "lamps", "--price", "9.5", "--currency", "EUR"]
    words += ["--interest", "warm light"]
    added = run("items", "add", "lamp 1", *words)
    assert added.exit_code == 0
    item = json.loads(run("items", "show", "lamp 1", "--json").stdout)
    assert (item["title"], item["categories"], item["price"], item["currency"]) == ("A brass lamp", ["lamps"], 9.5, "EUR")
    assert item["interests"] == ["warm light"]
    sids = dict(_rows(added.stdout))
    assert sids.keys() == {"one", "two"} and sids["one"].split() == [str(code) for code in item["sid"]]


def test_an_item_is_changed_removed_and_brought_back(run, url):
    run("items", "add", "rope 1", "--title", "A hemp rope")
    changed = run("items", "change", "rope 1", "--title", "A jute rope", "--price", "3", "--currency", "EUR", "--unavailable")
    assert changed.exit_code == 0
    assert {"title": "A jute rope", "price": "3.0", "available": "False"}.items() <= dict(_rows(changed.stdout)).items()
    assert run("items", "search", "jute", "--json").stdout == '{"items": []}\n'
    run("items", "change", "rope 1", "--available")
    assert [row[0] for row in _rows(run("items", "search", "jute").stdout)] == ["rope 1"]
    removed = run("items", "remove", "rope 1")
    assert (removed.exit_code, _rows(removed.stdout)) == (0, [["rope 1", "in no list any more"]])
    assert run("items", "show", "rope 1").exit_code == 2
    Client(url).add_item(NewItem(item_id="rope 1", title="A rope again"))
    assert Client(url).item("rope 1").title == "A rope again"
    nothing = run("items", "change", "rope 1")
    assert nothing.exit_code == 2 and "give at least one option" in nothing.stderr
    assert run("items", "remove", "ghost").exit_code == 2


def test_a_file_of_json_lines_is_imported_in_chunks_and_each_line_that_fails_is_named(run, url, tmp_path, monkeypatch):
    monkeypatch.setattr(item_commands, "CHUNK", 2)
    lines = ['{"item_id": "i1", "title": "One"}', "", "{", '{"item_id": "i2"}', '{"item_id": "i1", "price": 2}']
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    done = run("items", "import", str(tmp_path / "items.jsonl"))
    assert done.exit_code == 2
    assert _rows(done.stdout) == [["added", "1"], ["changed", "1"], ["failed", "2"]]
    broken, lacking = done.stderr.splitlines()
    assert broken.startswith("line 3: The line is not a JSON object with an item_id: it cannot be read as JSON: ")
    assert lacking == "line 4 i2: The request does not follow the contract: title: Field required"
    assert Client(url).item("i1").price == 2
    missing = run("items", "import", str(tmp_path / "none.jsonl"))
    assert missing.exit_code == 2 and "none.jsonl: no such file" in missing.stderr
    (tmp_path / "good.jsonl").write_text('{"item_id": "i1", "delete": true}\n')
    assert _rows(run("items", "import", str(tmp_path / "good.jsonl")).stdout) == [["changed", "1"]]
    assert [each.status for each in Client(url).change_items([{"item_id": "i1", "title": "Again"}])] == ["added"]


def test_load_counts_answers_and_fails_if_any_request_does(run, tmp_path):
    sent = run("load", "--rate", "20", "--seconds", "1", "--k", "3", "--json")
    assert sent.exit_code == 0
    summary = json.loads(sent.stdout)
    assert summary["failures"] == {} and summary["ok"] == summary["sent"] > 5
    bodies = tmp_path / "bodies.jsonl"
    bodies.write_text('{"history": ["item05"], "k": 13}\n')
    failed = run("load", "--rate", "20", "--seconds", "0.5", "--bodies", str(bodies), "--json")
    assert failed.exit_code == 1
    summary = json.loads(failed.stdout)
    assert summary["failures"] == {"422 k-too-large": summary["sent"]}
    table = run("load", "--rate", "20", "--seconds", "0.5", "--bodies", str(bodies))
    shown = dict(_rows(table.stdout))
    assert table.exit_code == 1 and shown["failed: 422 k-too-large"] == shown["requests sent"] and shown["answered"] == "0"
    refused = run("load", "--rate", "0")
    assert (refused.exit_code, refused.stderr) == (2, "error: load: rate = 0 and seconds = 10 must both be above 0\n")


@pytest.mark.parametrize("key", ["", "secret"])
def test_the_key_of_the_environment_goes_with_every_request(key):
    api, seen = FastAPI(), []

    @api.get("/v1/models")
    async def models(request: Request) -> dict:
        seen.append(request.headers.get("authorization"))
        return {"data": []}

    with serve_over_http(api) as address:
        assert CliRunner().invoke(app, ["models", "list", "--url", address], env={"DIGR_API_KEY": key}).exit_code == 0
    assert seen == [f"Bearer {key}" if key else None]


@pytest.mark.parametrize(("status", "code"), [(401, 2), (429, 2), (503, 1), (504, 1)])
def test_what_the_caller_can_mend_is_told_from_a_failure_by_the_exit_code(status, code):
    problem = {"type": "x", "title": "Title", "status": status, "detail": "what \x1b[31m to do"}
    with serve_over_http(_answering(json.dumps(problem), status, "application/problem+json")) as address:
        refused = CliRunner().invoke(app, ["ask", "a", "--url", address])
    assert (refused.exit_code, refused.stdout) == (code, "")
    assert refused.stderr == "error: Title: what \\x1b[31m to do\n"


def test_a_title_cannot_break_the_terminal(run):
    assert HOSTILE in run("items", "search", "title", "item07").stdout
    found = {"items": [{"item_id": "[bold]a[/bold]", "title": "a\x1b[31m\nb\u202ec\x9b", "interest": "[link=http://x]y[/link]"}]}
    with serve_over_http(_answering(json.dumps(found))) as address:
        listed = CliRunner().invoke(app, ["items", "search", "--url", address])
        written = CliRunner().invoke(app, ["items", "search", "--url", address, "--json"])
    assert _rows(listed.stdout) == [["[bold]a[/bold]", "a\\x1b[31m b\\u202ec\\x9b", "[link=http://x]y[/link]"]]
    assert written.stdout.isascii() and "\x1b" not in written.stdout
    assert json.loads(written.stdout)["items"][0]["title"] == found["items"][0]["title"]


def test_text_of_every_language_stays_as_it_is():
    assert plain("Käse 日本 می\u200cخواهم 👩\u200d🚀") == "Käse 日本 می\u200cخواهم 👩\u200d🚀"
    assert plain("a\tb\u2028c\udc80") == "a b c\\udc80"
