"""Configs and recordings that come with the package, found by name.

They lie in `configs/` of a checkout and in `digr/presets` of an installed wheel.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
PRESETS = _PACKAGE / "presets" if (_PACKAGE / "presets").is_dir() else _PACKAGE.parent / "configs"
"""Folder of the presets: that of the wheel, or of the checkout."""


def preset_names() -> list[str]:
    """Return the names of all presets, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def find_config(name: str | Path) -> Path:
    """Return the TOML file that a path or the name of a preset stands for.

    A file at that path, relative to the working directory, wins over a preset. The name of a preset may be
    written as "quickstart", "quickstart.toml" or "configs/quickstart.toml".

    Raises:
        ValueError: there is neither such a file nor such a preset; the message lists the presets.
    """
    path = Path(name)
    if path.is_file():
        return path
    preset = PRESETS / f"{path.name.removesuffix('.toml')}.toml"
    if path.parent in (Path(), Path("configs")) and preset.is_file():
        return preset
    raise ValueError(
        f"config {name}: no such file in {Path.cwd()}, and no preset of that name; give the path of a TOML file or one of "
        f"the presets {', '.join(preset_names())}"
    )


def find_recording(path: str) -> str:
    """Return where the recording that a config names lies: `path` itself, or a file of the presets if `path` does not exist.

    A relative path is relative to the working directory, whatever folder the config lies in. Only a path below configs/ may
    also stand for a file of the presets, so that presets work outside a checkout.
    """
    folder, *parts = Path(path).parts or ("",)
    preset = PRESETS.joinpath(*parts)
    return str(preset) if folder == "configs" and preset.exists() and not Path(path).exists() else path
