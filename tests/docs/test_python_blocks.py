"""Python in the documentation runs; what needs a run or an endpoint says so in its title, and gets a small one."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from serve.middleware.gate import KeyRing
from serve.routes import build_api
from serve.settings import AppArguments
from tests.serve.http_server import serve_over_http
from tests.serve.ranked_run import write_ranker
from tests.serve.tiny_run import start_service, write_run

ROOT = Path(__file__).resolve().parent.parent.parent
FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<info>[^\n`]*)\n(?P<code>.*?)^ *(?P=ticks) *$", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    place: str
    info: str
    code: str


def python_blocks(where: str, text: str) -> list[Block]:
    """Return the blocks that are marked as Python in any spelling."""
    found = []
    for match in FENCE.finditer(text):
        info = match["info"].strip()
        if re.match(r"\{?\s*\.?py", info, re.IGNORECASE):
            line = text.count("\n", 0, match.start("code"))
            found.append(Block(f"{where}:{line + 1}", info, textwrap.dedent(match["code"])))
    return found


RUN, ENDPOINT = 'python title="needs a run"', 'python title="needs a running endpoint"'
OF_THE_QUICKSTART = {"S0BY2SM": "item05", "S0SHUHH": "item06", "Lamps": "c1"}
"""Words of the quickstart's run -> words of the small one."""


def run_block(block: Block, address: str = "") -> None:
    """Run a block in a namespace of its own; one that needs an endpoint asks the one at `address`."""
    code = block.code
    if block.info == ENDPOINT:
        assert "http://127.0.0.1:8000" in code, block.place
        code = code.replace("http://127.0.0.1:8000", address)
        for theirs, ours in OF_THE_QUICKSTART.items():
            code = code.replace(theirs, ours)
    elif block.info not in ("python", RUN):
        raise AssertionError(f"{block.place}: expected ```python, ```{RUN} or ```{ENDPOINT}, found ```{block.info}")
    exec(compile(code, block.place, "exec"), {"__name__": "__main__"})


PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCKS = [block for page in PAGES for block in python_blocks(page.relative_to(ROOT).as_posix(), page.read_text())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with a small run where the quickstart's is."""
    found = tmp_path_factory.mktemp("here")
    write_ranker(write_run(str(found / "runs" / "quickstart")))
    return found


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
    service = start_service(AppArguments(run_dir=str(folder / "runs" / "quickstart"), beam_width=50))
    with serve_over_http(build_api(service, KeyRing(""))) as url:
        yield url


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_python_block_runs(block, folder, request, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    run_block(block, request.getfixturevalue("address") if block.info == ENDPOINT else "")
    assert capsys.readouterr().out or block.info == "python"


PAGE = """# Page

```python
assert 1 + 1 == 3
```

- in a list:

    ```python title="needs a run"
    assert 1 + 1 == 3
    ```

```toml
a = 1
```

```py
x = 1
```
"""


def test_blocks_are_found_in_lists_and_in_every_spelling():
    assert python_blocks("page.md", PAGE) == [
        ("page.md:4", "python", "assert 1 + 1 == 3\n"),
        ("page.md:10", 'python title="needs a run"', "assert 1 + 1 == 3\n"),
        ("page.md:18", "py", "x = 1\n"),
    ]


def test_a_block_fails_that_does_not_run_or_has_another_title():
    wrong, needs_a_run, other = python_blocks("page.md", PAGE)
    with pytest.raises(AssertionError, match=r"^$"):
        run_block(wrong)
    with pytest.raises(AssertionError, match=r"^$"):
        run_block(needs_a_run)
    with pytest.raises(AssertionError, match=r"page\.md:18: expected ```python, .*, found ```py$"):
        run_block(other)
    with pytest.raises(AssertionError, match='found ```python title="soon"'):
        run_block(wrong._replace(info='python title="soon"', code=""))
