"""The command-line client over real HTTP, without Ray."""

import json
from collections.abc import Iterator

import httpx
import pytest

from serve.client import main
from tests.patience import CEILING_SECONDS
from tests.serve.explorer_server import serve_two_versions


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with serve_two_versions(tmp_path_factory.mktemp("runs")) as address:
        yield address


def test_recommend_prints_the_list_of_a_history_or_a_user(url, capsys):
    assert main(["--url", url, "recommend", "--history", "item05", "item06", "--k", "3", "--model", "two"]) == 0
    body = {"history": ["item05", "item06"], "k": 3, "model": "two"}
    items = httpx.post(f"{url}/v1/recommend", json=body, timeout=CEILING_SECONDS).json()["items"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == [item["item_id"] for item in items]
    assert lines[0].startswith(f"  1  {items[0]['score']:8.3f}  {items[0]['item_id']}  Title {items[0]['item_id']}")
    assert main(["--url", url, "recommend", "--user", "nobody", "--k", "2"]) == 0
    told = capsys.readouterr()
    assert [line.split()[1:3] for line in told.out.splitlines()] == [["-", "item05"], ["-", "item06"]]
    assert told.err == "nothing of this history is known: the most popular items\n"


def test_unknown_items_are_an_error_unless_they_may_be_left_out(url, capsys):
    assert main(["--url", url, "recommend", "--history", "item05", "ghost"]) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.endswith("ghost\n") and "not in the catalogue" in told.err
    assert main(["--url", url, "recommend", "--history", "item05", "ghost", "--ignore-unknown"]) == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 10 and told.err == "not in the catalogue, left out: ghost\n"


def test_items_are_searched_and_shown(url, capsys):
    assert main(["--url", url, "items", "title", "item1", "--limit", "2"]) == 0
    found = capsys.readouterr().out.splitlines()
    assert len(found) == 2 and all(line.split("  ")[1].startswith("Title item1") for line in found)
    assert main(["--url", url, "items", "--item", "item10"]) == 0
    assert json.loads(capsys.readouterr().out)["categories"] == ["all", "c2"]
    assert main(["--url", url, "items", "--item", "a/../b?c"]) == 1
    assert "item 'a/../b?c' is not in the catalogue" in capsys.readouterr().err


def test_models_lists_the_versions_with_the_default_one_marked(url, capsys):
    assert main(["--url", url, "models"]) == 0
    one, two = capsys.readouterr().out.splitlines()
    assert one.startswith("* one  policy_sft ") and one.endswith("  ranker missing  60 items")
    assert two.startswith("  two  policy_sft ")


def test_models_changes_the_default_version_and_goes_back(url, capsys):
    assert main(["--url", url, "models", "--promote", "two"]) == 0
    assert [line[0] for line in capsys.readouterr().out.splitlines()] == [" ", "*"]
    assert main(["--url", url, "models", "--roll-back"]) == 0
    assert [line[0] for line in capsys.readouterr().out.splitlines()] == ["*", " "]
    assert main(["--url", url, "models", "--promote", "three"]) == 1
    assert "there is no model 'three'; loaded are one, two" in capsys.readouterr().err


def test_add_puts_an_item_into_every_version(url, capsys):
    words = ["--title", "A brass lamp", "--category", "lamps", "--price", "9.5", "--currency", "EUR"]
    words += ["--interest", "warm light"]
    assert main(["--url", url, "add", "lamp 1", *words]) == 0
    added = dict(line.split("  ") for line in capsys.readouterr().out.splitlines())
    assert main(["--url", url, "items", "--item", "lamp 1"]) == 0
    item = json.loads(capsys.readouterr().out)
    assert (item["title"], item["categories"], item["price"], item["currency"]) == ("A brass lamp", ["lamps"], 9.5, "EUR")
    assert item["interests"] == ["warm light"]
    assert added.keys() == {"one", "two"} and added["one"].split() == [str(code) for code in item["sid"]]


def test_load_ends_with_one_line_of_json_and_tells_failures_by_its_status(url, capsys, tmp_path):
    assert main(["--url", url, "load", "--rate", "20", "--seconds", "1", "--k", "3"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["failures"] == {} and summary["ok"] == summary["sent"] > 5
    bodies = tmp_path / "bodies.jsonl"
    bodies.write_text('{"history": ["item05"], "k": 13}\n')
    assert main(["--url", url, "load", "--rate", "20", "--seconds", "0.5", "--bodies", str(bodies)]) == 1
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["failures"] == {"422 k-too-large": summary["sent"]}


@pytest.mark.parametrize("key", ["", "secret"])
def test_the_key_of_the_environment_goes_with_every_request(key, monkeypatch, capsys):
    from fastapi import FastAPI, Request

    from tests.serve.http_server import serve_over_http

    api, seen = FastAPI(), []

    @api.get("/v1/models")
    async def models(request: Request) -> dict:
        seen.append(request.headers.get("authorization"))
        return {"data": []}

    monkeypatch.setenv("DIGR_API_KEY", key)
    with serve_over_http(api) as address:
        assert main(["--url", address, "models"]) == 0
    assert seen == [f"Bearer {key}" if key else None]
