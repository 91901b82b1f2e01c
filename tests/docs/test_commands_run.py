"""The commands that README.md and docs/ show are executed: jobs as a dry run, and questions to an endpoint against one.

`tests/jobs/test_own_data.py` executes the walk-through of one's own data in full, `tests/serve/test_run.py` starts the endpoint,
and `tests/benchmarks` runs the benchmarks.
"""

import asyncio
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from digr.artifacts import COMMANDS as JOBS
from digr.config.run import SyntheticConfig
from digr.data.synthetic import build_shop
from jobs.__main__ import app
from serve.client import Client
from serve.contract.item_schemas import NewItem
from serve.contract.schemas import RecommendRequest
from serve.lists.recommending import answer_request
from serve.middleware.gate import KeyRing
from serve.routes import build_api
from serve.settings import AppArguments, VersionSettings
from tests.buckets import serve_bucket
from tests.docs.test_commands import COMMANDS, ROOT
from tests.serve.http_server import serve_over_http
from tests.serve.ranked_run import write_ranker
from tests.serve.tiny_run import BEAM_WIDTH, start_service, write_run

SHARED = ROOT.parent / "shared" / "data"
DATA = {"industrial": SHARED / "amazon18_industrial_minionerec", "beauty": SHARED / "amazon14_beauty"}
"""Public data that a preset reads."""
OF_THE_RUN = {"S0BY2SM": "item05", "S0SHUHH": "item06", "U000000": "u1", "lamp": "title", "--seconds": "--seconds=1"}
"""Words of the quickstart's run -> words of the tiny one; a load of a second in place of a minute."""


def _words(command: str) -> list[str]:
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    return words[1:] if words and Path(words[0]).name == "digr" else []


DIGR = [command for command in COMMANDS if _words(command)]
JOB_COMMANDS = [command for command in DIGR if any(_words(command)[: len(job.split())] == job.split() for job in JOBS)]
ENDPOINT_COMMANDS = [command for command in DIGR if _words(command)[0] in ("ask", "items", "models", "load")]
ELSEWHERE = [command for command in DIGR if _words(command)[0] in ("serve", "keys") or _words(command)[:2] == ["data", "import"]]
ONLINE = [command for command in DIGR if _words(command)[0] == "evaluate-online"]


def test_every_command_is_of_a_kind_that_is_executed():
    described = [command for command in DIGR if _words(command)[:2] == ["data", "describe"]]
    helped = [command for command in DIGR if "--help" in command]
    assert sorted({*JOB_COMMANDS, *ENDPOINT_COMMANDS, *ONLINE, *ELSEWHERE, *described, *helped}) == sorted(DIGR)
    assert (len(JOB_COMMANDS) > 30, len(ENDPOINT_COMMANDS) > 5) == (True, True)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Iterator[Path]:
    """Return a folder with what the commands read: one's own data, the public data if they are here, and a bucket."""
    folder = tmp_path_factory.mktemp("work") / "here"
    folder.mkdir()
    if SHARED.is_dir():
        (folder.parent / "shared").symlink_to(SHARED.parent)
    shop = build_shop(SyntheticConfig(num_items=48, num_users=80, num_interests=4), seed=0)
    with serve_bucket("my-bucket") as bucket:
        for place in ("runs/own_data/data", "runs/december_data"):
            (folder / place).mkdir(parents=True)
            pq.write_table(shop.items, folder / place / "items.parquet")
            pq.write_table(shop.interactions, folder / place / "interactions.parquet")
        _upload(folder / "runs/own_data/data", f"{bucket}/catalogue")
        yield folder


def _upload(folder: Path, address: str) -> None:
    from digr.files import filesystem_of

    fs, path = filesystem_of(address)
    for file in folder.iterdir():
        with fs.open_output_stream(f"{path}/{file.name}") as sink:
            sink.write(file.read_bytes())


@pytest.mark.parametrize("command", JOB_COMMANDS)
def test_a_job_of_the_documentation_says_what_it_would_build(command, workplace, monkeypatch):
    words = _words(command)
    missing = [folder for preset, folder in DATA.items() if preset in words and not folder.is_dir()]
    if missing and words[0] == "run" and "data.path" not in command:
        pytest.skip(f"{missing[0]} is not here")
    if "data.path=runs/industrial_data" in words:
        if missing:
            pytest.skip(f"{missing[0]} is not here")
        words = [word.replace("runs/industrial_data", str(DATA["industrial"])) for word in words]
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # no model is fetched for a dry run
    monkeypatch.setenv("FRONTIER_API_KEY", "none")
    done = CliRunner().invoke(app, [*words, "--dry-run"])
    if "keep_from=runs/november" in command:  # an earlier run, which is not here
        assert done.exit_code == 2, _told(done)
        assert "runs/november/canonical_interests: artifact canonical_interests does not exist" in done.output
    else:
        assert done.exit_code == 0, _told(done)
        assert "would build" in done.output
    assert not any((workplace / "runs").rglob("_manifest.json"))


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """Serve two versions with a ranker."""
    folder = tmp_path_factory.mktemp("served")
    for seed, name in enumerate(("new", "old")):
        write_ranker(write_run(str(folder / name), seed=seed))
    models = {name: VersionSettings(run_dir=str(folder / name)) for name in ("new", "old")}
    service = start_service(AppArguments(models=models, beam_width=BEAM_WIDTH, state_dir=str(folder / "state")))
    with serve_over_http(build_api(service, KeyRing(""))) as address:
        Client(address).add_item(NewItem(item_id="kettle-7", title="Pour-over kettle", price=31.5, currency="EUR"))
        yield address


@pytest.mark.parametrize("command", sorted(ENDPOINT_COMMANDS, key=ENDPOINT_COMMANDS.index))
def test_a_question_of_the_documentation_is_answered(command, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/guide/changing_items.md").read_text()
    Path("items.jsonl").write_text(re.search(r'```jsonl title="items.jsonl"\n(.*?)```', page, re.DOTALL)[1])
    words = [OF_THE_RUN.get(word, word) for word in _words(command)]
    if "--seconds=1" in words:
        words.pop(words.index("--seconds=1") + 1)
    if words[:2] == ["models", "roll-back"]:
        CliRunner().invoke(app, ["models", "promote", "old"], env={"DIGR_URL": url})
    done = CliRunner().invoke(app, words, env={"DIGR_URL": url})
    assert done.exit_code == 0, _told(done)
    assert done.stdout.strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("curl ")])
def test_a_request_of_the_documentation_by_curl_is_answered(command, url):
    for theirs, ours in {**OF_THE_RUN, "http://127.0.0.1:8000": url}.items():
        command = command.replace(theirs, ours)
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    assert [len(item["title"]) > 0 for item in json.loads(done.stdout)["items"]] == [True] * 5


@pytest.mark.parametrize("command", ONLINE)
def test_an_online_evaluation_of_the_documentation_is_made(command, tmp_path, monkeypatch):
    run_dir = write_run(str(tmp_path / "runs" / "quickstart")).root
    service = start_service(AppArguments(run_dir=run_dir, beam_width=BEAM_WIDTH))
    asyncio.run(answer_request(service, RecommendRequest(user_id="u1", k=5)))
    service.impressions.commit.flush()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, _words(command))
    assert done.exit_code == 0, _told(done)
    assert [line.split()[:3] for line in done.stdout.splitlines() if "hr@5" in line][:2] == [
        ["all", "all", "hr@5"],
        ["model", "main", "hr@5"],
    ]


def test_the_key_of_the_documentation_is_made():
    done = CliRunner().invoke(app, ["keys", "shop", "--role", "admin"])
    assert done.exit_code == 0, _told(done)
    assert 'name = "shop"\nrole = "admin"' in done.stdout


def _told(done: Result) -> str:
    return f"{done.output}\n{done.exception!r}"
