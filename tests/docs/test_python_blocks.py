"""Python in the documentation runs; what needs a run or an endpoint says so in its title, and is compiled."""

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

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


def run_block(block: Block) -> None:
    """Run a block in a namespace of its own, or compile it where its title says what it needs."""
    compiled = compile(block.code, block.place, "exec")
    if block.info == "python":
        exec(compiled, {"__name__": "__main__"})
    elif not re.fullmatch(r'python title="needs a [^"]+"', block.info):
        raise AssertionError(f'{block.place}: expected ```python or ```python title="needs a ...", found ```{block.info}')


PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCKS = [block for page in PAGES for block in python_blocks(page.relative_to(ROOT).as_posix(), page.read_text())]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_python_block_runs_or_says_what_it_needs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_block(block)


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


def test_a_block_fails_that_does_not_run_or_compile_or_has_another_title():
    wrong, needs_a_run, other = python_blocks("page.md", PAGE)
    with pytest.raises(AssertionError, match=r"^$"):
        run_block(wrong)
    run_block(needs_a_run)
    with pytest.raises(SyntaxError):
        run_block(needs_a_run._replace(code="1 +"))
    with pytest.raises(AssertionError, match=r"page\.md:18: expected ```python or .*, found ```py$"):
        run_block(other)
    with pytest.raises(AssertionError, match='found ```python title="soon"'):
        run_block(wrong._replace(info='python title="soon"', code=""))
