"""Make a release of a clean checkout: `make release VERSION=1.2.3`, which runs all checks and tests before this script.

It sets the version, dates the section of CHANGELOG.md, builds the source distribution and the wheel into dist/, commits and tags.
Nothing is pushed or uploaded: the last lines that it prints say how.
"""

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION, CITATION, CHANGES = ROOT / "digr/__init__.py", ROOT / "CITATION.cff", ROOT / "CHANGELOG.md"


def main(version: str, dry_run: bool) -> None:
    """Release a version, or with `dry_run` only say whether that could be done.

    Raises:
        ValueError: the version, the changes or the checkout are not fit for a release.
    """
    today = datetime.now(UTC).date().isoformat()
    edited = _edited(version, today)
    if found := _git("status", "--porcelain"):
        raise ValueError(f"release: the checkout has changes that are not committed; commit or drop them first:\n{found}")
    if _git("tag", "--list", f"v{version}"):
        raise ValueError(f"release: the tag v{version} exists; give the next version")
    if dry_run:
        print(f"release: {version} can be made of {_git('rev-parse', '--short', 'HEAD')}")
        return
    for path, text in edited.items():
        path.write_text(text)
    try:
        subprocess.run([sys.executable, "-m", "hatchling", "build", "--directory", "dist"], cwd=ROOT, check=True)
        _git("commit", "--quiet", "--message", f"Release {version}", *map(str, edited))
    except subprocess.CalledProcessError:
        _git("checkout", "HEAD", "--", *map(str, edited))
        raise
    _git("tag", "--annotate", f"v{version}", "--message", f"DIGR {version}")
    print(f"release: dist/ holds {version}, and HEAD is tagged v{version}. To publish it:")
    print(f"  git push origin HEAD v{version}")
    print(f"  python -m twine upload dist/digr-{version}*")


def _edited(version: str, today: str) -> dict[Path, str]:
    """Return the files that a release changes, as they will be."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"release: VERSION is {version!r}, expected three numbers: make release VERSION=1.2.3")
    source = VERSION.read_text()
    now = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)[1]
    if _numbers(version) <= _numbers(now):
        raise ValueError(f"release: VERSION is {version}, but {now} is out already; give a later one")
    changes = CHANGES.read_text()
    section = re.search(r"^## Unreleased\n(.*?)(?=^## |\Z)", changes, re.MULTILINE | re.DOTALL)
    if section is None or not section[1].strip():
        raise ValueError("release: CHANGELOG.md has nothing below `## Unreleased`; say what changes for a user")
    citation = re.sub(r"^version: .*$", f"version: {version}", CITATION.read_text(), flags=re.MULTILINE)
    return {
        VERSION: source.replace(f'__version__ = "{now}"', f'__version__ = "{version}"'),
        CITATION: re.sub(r"^date-released: .*$", f"date-released: {today}", citation, flags=re.MULTILINE),
        CHANGES: changes.replace("## Unreleased\n", f"## Unreleased\n\n## {version} - {today}\n", 1),
    }


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return found.stdout.strip()


if __name__ == "__main__":
    try:
        main(next(iter(sys.argv[1:]), ""), dry_run="--dry-run" in sys.argv)
    except ValueError as error:
        sys.exit(f"error: {error}")
