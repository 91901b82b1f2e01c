"""Each script of examples/ runs by itself and prints what it says."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PRINTED = {
    "compare_systems": ["popularity         all hr@10: 0.275 [", "ours over popularity, hr@10: +0.088\n  95 % over users [+0.0"],
    "fit_sids": ["codes in use: ['100%', '100%']", "the same codes after loading: True"],
    "mine_interests": [
        "read as: Parsed(status='ok', interests=[('weekend trout fishing', 0.9)], reason=None)",
        "phrases: asked 3 of 3\nmodel: asked 3 of 3\nphrases: asked 1 of 4\nmodel: asked 1 of 4\n",
        "pan [('baking at home', ['model']), ('sourdough bread', ['phrases'])]",
    ],
    "trie_search": [
        "codes that may follow (0, 0): [False, True, True]",
        "proven to be the top 3: True\nprobabilities of all items sum to 1.000",
    ],
}


def test_every_example_is_run_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_says(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    printed = capsys.readouterr().out
    for part in PRINTED[name]:
        assert part in printed


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_is_short_and_made_of_cells(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert 30 <= len(text.splitlines()) <= 80
    assert text.count("\n# %% ") >= 4
