"""What README.md tells a reader to run exists, and its commands and links are real."""

import re
import shlex
from pathlib import Path

import pytest

from digr.artifacts import JOB_OF
from digr.config import load_config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = [block.replace("\\\n", "") for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)]
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_can_be_run(command):
    words = shlex.split(command)
    if words[0] == "make":
        assert words[1] in TARGETS
    elif words[0] == "bash":
        assert (ROOT / words[1]).is_file()
    elif words[:2] == ["git", "clone"]:
        assert words[-1].startswith("https://github.com/")
    else:
        assert "-m" in words, f"{command}: neither make, bash nor python -m"
        module, *rest = words[words.index("-m") + 1 :]
        source = ROOT / f"{module.replace('.', '/')}.py"
        assert source.is_file()
        if "--config" in rest:
            load_config(ROOT / rest[rest.index("--config") + 1], [word for word in rest if "=" in word])
        else:  # a job about files, before there is a run
            assert "run_and_exit(" in source.read_text()
        own = [word for word in rest if word.startswith("--") and "run_and_exit(" in source.read_text()]
        assert all(f'"{option}"' in source.read_text() for option in own)


def test_the_commands_that_run_everything_are_make_targets():
    assert {"make quickstart", "make test"} <= set(COMMANDS)
    assert {"setup", "quickstart", "test", "check", "clean"} <= set(TARGETS)


def test_the_table_of_jobs_is_complete():
    named = set(re.findall(r"^\| `jobs\.([a-z_]+)`", README, re.MULTILINE))
    exist = {path.stem for path in (ROOT / "jobs").glob("*.py") if "\n    main(" in path.read_text()}
    assert named == exist
    for artifact, job in JOB_OF.items():
        row = re.search(rf"^\| `jobs\.{job}` \|(.*)$", README, re.MULTILINE)[1]
        assert artifact in row


def test_every_make_target_and_environment_variable_that_is_named_exists():
    for target in re.findall(r"`make ([a-z]+)`", README):
        assert target in TARGETS
    assert "DIGR_DATA" in (ROOT / "tests" / "real_data.py").read_text()


@pytest.mark.parametrize("page", ["README.md", "cluster/README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_and_named_files_exist(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target
    for name in re.findall(r"`((?:configs|digr|jobs|serve|cluster|benchmarks|tests)/[A-Za-z0-9_./-]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_extras_that_are_named_exist():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"laptop", "cpu", "gpu", "dev"} == set(extras)
    for name in re.findall(r'-e "\.\[([a-z]+)\]"', README):
        assert name in extras
