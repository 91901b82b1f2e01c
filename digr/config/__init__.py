"""Every choice of a run, as frozen pydantic models read from one TOML file and `section.key=value` overrides.

Facts (level sizes with the suffix, dimensions, counts) are never here: they are in the manifest of the artifact that
made them. `cluster` holds what changes speed only, so it is left out of every stage's digest.
"""

from digr.config.presets import find_config, preset_names
from digr.config.root import Config, apply_overrides, build_config, load_config

__all__ = ["Config", "apply_overrides", "build_config", "find_config", "load_config", "preset_names"]
