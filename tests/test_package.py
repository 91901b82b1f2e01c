"""What is released: a wheel that works without the repository, one version everywhere, and a script that makes a release."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import digr
from tests.wheel import ROOT, build_wheel, install_wheel, run_command


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel."""
    return build_wheel(tmp_path_factory.mktemp("dist"))


def test_the_wheel_holds_what_is_read_beside_the_code(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    presets = {f"digr/presets/{path.name}" for path in (ROOT / "configs").glob("*.toml")}
    page = {f"serve/explorer/{path.name}" for path in (ROOT / "serve" / "explorer").iterdir() if path.suffix in (".html", ".js")}
    assert len(presets) >= 5
    assert "serve/explorer/index.html" in page
    assert presets | page <= names
    assert {"digr/evaluation/report.html", "serve/explorer/style.css", "serve/config.yaml", "digr/py.typed"} <= names
    assert "digr/presets/industrial_interests/responses.parquet" in names
    assert {name.partition("/")[0] for name in names} == {"digr", "jobs", "serve", f"digr-{digr.__version__}.dist-info"}


def test_the_installed_wheel_finds_presets_from_an_empty_folder(wheel, tmp_path):
    """What it runs from there is in tests/jobs/test_own_data.py."""
    commands = install_wheel(wheel, tmp_path / "venv")
    (tmp_path / "empty").mkdir()
    code = (
        "import digr, digr.config as c; print(digr.__file__); print(*c.preset_names()); "
        "print(c.load_config('industrial').interests.miners[0].recording)"
    )
    place, names, recording = run_command(commands / "python", "-c", code, cwd=tmp_path / "empty").splitlines()
    assert Path(place).is_relative_to(commands.parent)
    assert names == "beauty cluster industrial own_data quickstart"
    assert recording == str(Path(place).parent / "presets" / "industrial_interests" / "responses.parquet")


def test_there_is_one_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", digr.__version__)
    assert not re.search(r"^version = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    released = re.findall(r"^## (\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], str(citation["date-released"])) == released[0]
    assert released[0][0] == digr.__version__


def test_the_citation_has_what_its_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "type"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    [paper] = citation["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert paper["url"] == "https://arxiv.org/abs/2602.18907v1"


def test_the_changelog_is_in_the_form_that_releases_need():
    headings = re.findall(r"^##+ .*$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "## Unreleased"
    kinds = {"### Added", "### Changed", "### Removed", "### Fixed"}
    assert all(re.fullmatch(r"## \d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", line) or line in kinds for line in headings[1:])


@pytest.fixture
def clone(tmp_path) -> Path:
    """Clone the last commit, with the files that a release reads as they are now."""
    folder = tmp_path / "clone"
    run_command("git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", folder)
    for name in ("digr/__init__.py", "CITATION.cff", ".ci/release.py", "pyproject.toml"):
        (folder / name).write_text((ROOT / name).read_text())
    (folder / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n### Added\n\n- A thing.\n\n## 0.2.0 - 2026-11-30\n")
    for key, value in (("user.name", "Release"), ("user.email", "release@example.org")):
        run_command("git", "config", key, value, cwd=folder)
    run_command("git", "add", "--all", cwd=folder)
    run_command("git", "commit", "--quiet", "--allow-empty", "--message", "As it is", cwd=folder)
    return folder


def _release(clone: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ".ci/release.py", *arguments]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True)


def test_a_release_sets_the_version_dates_the_changes_builds_commits_and_tags(clone):
    assert "9.0.0 can be made of" in _release(clone, "9.0.0", "--dry-run").stdout
    assert run_command("git", "status", "--porcelain", cwd=clone) == ""
    found = _release(clone, "9.0.0")
    assert found.returncode == 0, found.stdout + found.stderr
    assert '__version__ = "9.0.0"' in (clone / "digr" / "__init__.py").read_text()
    changes = (clone / "CHANGELOG.md").read_text()
    assert re.search(
        r"^## Unreleased\n\n## 9\.0\.0 - \d{4}-\d\d-\d\d\n\n### Added\n\n- A thing\.\n\n## 0\.2\.0", changes, re.MULTILINE
    )
    citation = yaml.safe_load((clone / "CITATION.cff").read_text())
    assert citation["version"] == "9.0.0"
    assert {path.name for path in (clone / "dist").iterdir()} >= {"digr-9.0.0-py3-none-any.whl", "digr-9.0.0.tar.gz"}
    assert run_command("git", "describe", "--tags", cwd=clone).strip() == "v9.0.0"
    assert run_command("git", "status", "--porcelain", cwd=clone) == ""
    assert "git push origin HEAD v9.0.0" in found.stdout


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("", "VERSION is '', expected three numbers: make release VERSION=1.2.3"),
        ("1.0", "VERSION is '1.0', expected three numbers"),
        ("0.0.1", "VERSION is 0.0.1, but .* is out already; give a later one"),
    ],
)
def test_a_release_of_a_wrong_version_is_refused(clone, version, message):
    found = _release(clone, version)
    assert found.returncode == 1
    assert re.search(message, found.stderr)


def test_a_release_of_a_changed_checkout_is_refused(clone):
    (clone / "README.md").write_text("changed\n")
    found = _release(clone, "9.0.0")
    assert "changes that are not committed; commit or drop them first:\nM README.md" in found.stderr
    assert '__version__ = "9.0.0"' not in (clone / "digr" / "__init__.py").read_text()


def test_a_release_without_changes_for_a_user_is_refused(clone):
    (clone / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 0.2.0 - 2026-11-30\n")
    assert "has nothing below `## Unreleased`; say what changes for a user" in _release(clone, "9.0.0").stderr


def test_make_release_checks_and_tests_before_it_releases():
    recipe = (ROOT / "Makefile").read_text().partition("\nrelease: test-setup\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[1:] for line in recipe] == [
        [".ci/release.py", '"$(VERSION)"', "--dry-run"],
        ["--no-print-directory", "check", "test"],
        [".ci/release.py", '"$(VERSION)"'],
    ]
