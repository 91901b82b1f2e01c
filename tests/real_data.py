"""Where the real data is; tests that need it skip with this reason when it is absent."""

import os
from pathlib import Path

import pytest

DIGR_DATA = Path(os.environ.get("DIGR_DATA") or Path(__file__).resolve().parents[1] / "../shared/data").resolve()


def real_folder(name: str) -> str:
    """Return the folder of a real data set, or skip the test that asks."""
    folder = DIGR_DATA / name
    if not folder.is_dir():
        pytest.skip(f"real data is absent: {folder} (set DIGR_DATA)")
    return str(folder)
