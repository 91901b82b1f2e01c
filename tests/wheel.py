"""The wheel as it is released, and an environment that has it in place of the checkout."""

import os
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_command(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command that does not find the checkout through PYTHONPATH; returns what it prints."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run([*map(str, command)], cwd=cwd, env=kept | environment, capture_output=True, text=True)
    assert found.returncode == 0, f"{command}\n{found.stdout[-8000:]}{found.stderr[-8000:]}"
    return found.stdout


def build_wheel(folder: Path) -> Path:
    """Build the source distribution, and the wheel from it alone."""
    run_command(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder)
    [sdist] = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    run_command(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder, cwd=unpacked)
    [built] = folder.glob("*.whl")
    return built


def install_wheel(wheel: Path, folder: Path) -> Path:
    """Install a wheel into a new environment in `folder`, which sees the dependencies but no checkout; returns its `bin`."""
    run_command(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    site = Path(run_command(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # a folder in a .pth file is searched, but its own .pth files are not read: an editable install of the checkout stays out
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run_command(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    return python.parent
