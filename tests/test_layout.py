"""The repository keeps the shape that README.md describes."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("digr", "jobs", "serve", "benchmarks", "examples", "tests")


def _files(pattern: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in listed.splitlines()]


def _commands() -> list[Path]:
    return [path for path in _files("jobs/*.py") if path.parent == ROOT / "jobs" and not path.name.startswith("__")]


SOURCES = [path for package in PACKAGES for path in _files(f"{package}/*.py")]


def test_the_top_level_is_the_one_of_the_design():
    allowed = {"digr", "jobs", "serve", "cluster", "configs", "benchmarks", "examples", "tests", "docs", ".ci"} | {
        ".gitignore",
        ".pre-commit-config.yaml",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "LICENSE",
        "Makefile",
        "README.md",
        "mkdocs.yml",
        "pyproject.toml",
        "requirements.lock",
        "requirements-gpu.lock",
    }
    assert {path.relative_to(ROOT).parts[0] for path in _files(".")} == allowed


def test_the_library_has_the_parts_of_the_pipeline():
    parts = {path.relative_to(ROOT / "digr").parts[0] for path in _files("digr/*")}
    assert {
        "config",
        "tables.py",
        "artifacts.py",
        "data",
        "interests",
        "rewards",
        "models",
        "sids",
        "policy",
        "evaluation",
    } <= parts


def test_jobs_are_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in _commands()}
    assert {name: length for name, length in lengths.items() if length > 125} == {}


def test_no_file_is_long():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_function_of_the_library_is_long():
    long = {}
    for path in SOURCES:
        if path.is_relative_to(ROOT / "tests"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and _code_lines(node) > 50:
                long[f"{path.relative_to(ROOT)}:{node.name}"] = _code_lines(node)
    assert long == {}


def _code_lines(node: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = node.body[1] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body[0]
    return (node.end_lineno or node.lineno) - first.lineno + 1


BEFORE_A_RUN = ("import_data", "describe_data", "evaluate_online")
"""Jobs about files and folders, which need no config of a run."""


def test_every_job_ends_in_the_shared_command_line():
    for path in _commands():
        text = path.read_text()
        if path.stem in BEFORE_A_RUN:
            assert 'if __name__ == "__main__":\n    main()' in text and "run_and_exit(" in text, path.name
        else:
            assert 'if __name__ == "__main__":\n    main(run' in text, path.name
    for path in _files("jobs/*.py"):
        assert "argparse" not in path.read_text(), path.name


def test_jobs_holds_commands_and_four_wings():
    folders = {path.parent.name for path in _files("jobs/*.py")}
    assert folders == {"jobs", "runtime", "asking", "training", "ranking"}
    assert {path.stem for path in _commands()} - set(BEFORE_A_RUN) == {
        "build_neighbours",
        "build_sids",
        "compare_runs",
        "embed_items",
        "evaluate",
        "label_interests",
        "mine_interests",
        "pipeline",
        "prepare_data",
        "recommend",
        "train_classifier",
        "train_grpo",
        "train_ranker",
        "train_sft",
        "train_towers",
        "tune_codebooks",
    }


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"Magic" + r"Mock|mock\.pa" + r"tch|unittest import mo" + r"ck", "boundaries have fakes, not mocks"),
        (r"monkey" + r"patch\.setattr\((ray|vllm|deepspeed)", "Ray, vLLM and DeepSpeed are the real ones"),
        (r"\bpick" + r"le\b|torch\.lo" + r"ad\((?!.*weights_only=True)", "nothing that was read may run code"),
        (r"shell=T" + r"rue|os\.sys" + r"tem\(", "commands are lists"),
        (r"sys\.mod" + r"ules\[.(ray|vllm|deepspeed)", "Ray, vLLM and DeepSpeed are the real ones"),
    ],
)
def test_forbidden_words_are_absent(pattern, why):
    found = [str(path.relative_to(ROOT)) for path in SOURCES if re.search(pattern, path.read_text())]
    assert found == [], why


def test_ci_checks_before_it_tests():
    """CI ran the tests alone."""
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-2:] == ["make check", "make test"]
    assert "\ncheck: test-setup check-install\n" in (ROOT / "Makefile").read_text()


def test_the_tests_wait_under_one_high_ceiling():
    """Each test had a time-out of its own, from 5 to 600 s, and a busy machine met 17 of them."""
    own = re.compile(r"\btimeout=\d|\btimeout\(\d{1,3}\)|\bend = time\.|\bdeadline = time\.")
    tests = [
        path for path in SOURCES if path.is_relative_to(ROOT / "tests") and path.name not in ("patience.py", "test_layout.py")
    ]
    assert [str(path.relative_to(ROOT)) for path in tests if own.search(path.read_text())] == []


def test_what_takes_seconds_to_import_is_imported_where_it_is_used():
    slow = re.compile(r"^(from|import) (transformers|sklearn|scipy\.stats|deepspeed|peft|vllm)\b", re.MULTILINE)
    sources = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in ("digr", "jobs", "serve")]
    assert [str(path.relative_to(ROOT)) for path in sources if slow.search(path.read_text())] == []


LOCKS = {"requirements.lock": {"laptop", "cpu", "dev"}, "requirements-gpu.lock": {"gpu", "dev"}}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _locked(lock: str) -> dict[str, str]:
    return {_plain(name): version for name, version in (line.split("==") for line in (ROOT / lock).read_text().splitlines())}


def _plain(requirement: str) -> str:
    """The name in a requirement, as all who write it differently mean it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9_.-]+", requirement)[0]).lower()


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_names_and_versions_only(lock):
    for line in (ROOT / lock).read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line), line


def test_every_role_has_a_lock_that_pins_all_that_the_role_names():
    """One lock for all roles held the versions of the CPU build of vLLM, which its GPU build refuses."""
    assert set().union(*LOCKS.values()) == set(PROJECT["optional-dependencies"])
    for lock, roles in LOCKS.items():
        wanted = PROJECT["dependencies"] + [name for role in roles for name in PROJECT["optional-dependencies"][role]]
        assert {_plain(requirement) for requirement in wanted} <= set(_locked(lock)), lock


def test_the_tests_run_on_the_locked_versions_of_what_the_project_names():
    locked = _locked("requirements.lock")
    names = [_plain(requirement) for requirement in PROJECT["dependencies"]]
    assert {name: version(name).split("+")[0] for name in names} == {name: locked[name] for name in names}
    assert sys.version_info >= (3, 11)
