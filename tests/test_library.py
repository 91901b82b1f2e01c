"""`from digr import ...` gives the parts that stand alone, each on its first use."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import digr

SOURCE = Path(digr.__file__).read_text()


def _shown_to_type_checkers() -> dict[str, str]:
    """Return part -> module of the imports below TYPE_CHECKING."""
    [block] = [node for node in ast.parse(SOURCE).body if isinstance(node, ast.If)]
    return {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


@pytest.mark.parametrize("name", digr.__all__)
def test_each_part_is_imported_by_its_name(name):
    assert getattr(digr, name) is not None


def test_type_checkers_see_the_same_parts_from_the_same_modules():
    assert _shown_to_type_checkers() == digr._HOMES
    assert sorted(digr.__all__) == sorted(["__version__", *digr._HOMES])
    assert set(digr.__all__) <= set(dir(digr))


def test_parts_are_the_ones_of_their_modules():
    from digr.interests import ledger
    from digr.sids.trie import build_trie

    assert (digr.build_trie, digr.ledger) == (build_trie, ledger)


def test_a_part_that_is_not_there_is_an_error():
    with pytest.raises(AttributeError, match="module 'digr' has no attribute 'build_tree'"):
        _ = digr.build_tree


def _loaded_by(code: str) -> set[str]:
    code += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {"torch", "ray", "numpy", "pyarrow", "pydantic", "transformers"}


def test_importing_the_library_loads_nothing_heavy():
    loaded = _loaded_by("import digr; assert digr.__version__") - _loaded_by("pass")
    assert "digr" in loaded
    assert loaded & HEAVY == set()


def test_metrics_come_without_pytorch():
    loaded = _loaded_by("from digr import evaluate_ranks") - _loaded_by("pass")
    assert "numpy" in loaded
    assert not {"torch", "ray"} & loaded


def test_types_are_part_of_the_package_and_make_check_reads_the_examples_by_them():
    """A part that type checkers do not see is an `object` to them, which the examples could not call."""
    package = Path(digr.__file__).parent
    assert (package / "py.typed").is_file()
    assert "examples" in tomllib.loads((package.parent / "pyproject.toml").read_text())["tool"]["mypy"]["packages"]
