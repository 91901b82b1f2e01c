"""Every choice of a run, as frozen pydantic models read from one TOML file and `section.key=value` overrides.

Facts (level sizes with the suffix, dimensions, counts) are never here: the manifest of the artifact that measured them
holds them. `cluster` changes only speed and `images` only what may be read, so no stage's digest includes them.
"""

from digr.config.presets import find_config, preset_names
from digr.config.root import Config, apply_overrides, build_config, load_config

__all__ = ["Config", "apply_overrides", "build_config", "find_config", "load_config", "preset_names"]
