"""The root of the configuration, and how it is read from TOML and `section.key=value` overrides."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, model_validator

from digr.config.base import Section
from digr.config.fields import models_inside
from digr.config.images import ImagesConfig
from digr.config.interests import ClassifierConfig, EmbeddingsConfig, InterestsConfig, LabelsConfig
from digr.config.policy import DecodingConfig, GrpoConfig, PolicyConfig, SftConfig, TasksConfig, TrainConfig
from digr.config.presets import find_config
from digr.config.ranking import RankingConfig
from digr.config.run import AblationConfig, ClusterConfig, DataConfig, EvaluationConfig, RunConfig, SeedsConfig, TowersConfig
from digr.config.sids import SidsConfig, TuneConfig


class Config(Section):
    """A whole run."""

    run: RunConfig
    data: DataConfig = DataConfig()
    images: ImagesConfig = ImagesConfig()
    interests: InterestsConfig = InterestsConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    labels: LabelsConfig = LabelsConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    sids: SidsConfig = SidsConfig()
    tune: TuneConfig = TuneConfig()
    policy: PolicyConfig = PolicyConfig()
    tasks: TasksConfig = TasksConfig()
    train: TrainConfig = TrainConfig()
    sft: SftConfig = SftConfig()
    grpo: GrpoConfig = GrpoConfig()
    ranking: RankingConfig = RankingConfig()
    decoding: DecodingConfig = DecodingConfig()
    towers: TowersConfig = TowersConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seeds: SeedsConfig = SeedsConfig()
    cluster: ClusterConfig = ClusterConfig()
    ablations: tuple[AblationConfig, ...] = ()
    """Variants of the run with some keys changed, measured beside the main one."""

    @model_validator(mode="after")
    def _left_out_miners_exist(self) -> "Config":
        names = [miner.name for miner in self.interests.miners]
        if unknown := [name for name in self.embeddings.without_miners if name not in names]:
            raise ValueError(f"embeddings.without_miners: no miner is called {unknown[0]!r}, expected some of {names}")
        return self

    @model_validator(mode="after")
    def _users_are_mined(self) -> "Config":
        read: dict[str, float] = {"policy.prompt_interests": self.policy.prompt_interests}
        read |= {"grpo.reward.user_interest": self.grpo.reward.user_interest or 0}
        for key, value in read.items():
            if value and "user" not in self.interests.owners:
                raise ValueError(
                    f"{key} = {value:g} reads users' interests, but interests.owners is {list(self.interests.owners)}; "
                    f'add "user" to it, or set {key} = 0'
                )
        return self

    @model_validator(mode="after")
    def _canonical_interests_are_built(self) -> "Config":
        weight = self.grpo.reward.canonical
        if weight and self.grpo.enabled and not self.ranking.enabled:
            raise ValueError(
                f"grpo.reward.canonical = {weight:g} reads canonical interests, but ranking.enabled = false leaves them out, as "
                f"ablations do; set grpo.reward.canonical = 0 there, or enable the ranking"
            )
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, or a preset by its name (see `find_config`), and apply `section.key=value` overrides.

    A value is read as TOML, so lists and booleans work; a value that is not valid TOML is a string. Relative paths inside the
    file are relative to the working directory, not to the file.

    Raises:
        ValueError: the file is missing or not TOML, an override has no `=`, a key is unknown (the nearest known key
            is named) or a value is out of its range.
    """
    path = find_config(path)
    try:
        tree = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config {path}: not valid TOML: {error}") from error
    values = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise ValueError(f"override {override!r}: expected section.key=value, for example sft.epochs=3")
        values[key.strip()] = _parse_value(text)
    return build_config(_with_overrides(tree, values), where=str(path))


def apply_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Return a new config with dotted keys replaced, checked as when read from a file."""
    return build_config(_with_overrides(_tree_of(config), overrides), where="overrides")


def _tree_of(value: Any) -> Any:
    """Return sections as mappings with every field, also those that a dump leaves out of a result's identity."""
    if isinstance(value, BaseModel):
        return {name: _tree_of(getattr(value, name)) for name in type(value).model_fields}
    return [_tree_of(item) for item in value] if isinstance(value, tuple) else value


def build_config(tree: Mapping[str, Any], where: str) -> Config:
    """Check a nested mapping; one ValueError lists all problems, each with its dotted key."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"config {where}: " + "; ".join(_explain(item) for item in error.errors())) from None


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _with_overrides(tree: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    copy = {key: dict(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
    for dotted, value in values.items():
        *parents, leaf = dotted.split(".")
        node = copy
        for parent in parents:
            child = node.get(parent, {})
            if not isinstance(child, Mapping):
                raise ValueError(f"override {dotted}: {parent} is a value, not a section")
            node[parent] = dict(child)
            node = node[parent]
        node[leaf] = value
    return copy


def _explain(error: Mapping[str, Any]) -> str:
    location = tuple(error["loc"])
    dotted = ".".join(str(part) for part in location)
    if error["type"] != "extra_forbidden":
        return f"{dotted or 'top level'}: {error['msg']} (found {error.get('input')!r})" if dotted else str(error["msg"])
    known = _known_keys(Config, location[:-1])
    nearest = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.0)
    hint = f"; the nearest known key is {'.'.join([*map(str, location[:-1]), nearest[0]])}" if nearest else ""
    return f"{dotted}: unknown key{hint}"


def _known_keys(model: Any, location: Sequence[Any]) -> list[str]:
    """Return the field names at the location of an error, through lists and tagged unions."""
    for part in location:
        if isinstance(part, int):
            continue
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = model.model_fields[part].annotation
        candidates = [model] if isinstance(model, type) and issubclass(model, BaseModel) else models_inside(model)
        tagged = [item for item in candidates if "kind" in item.model_fields and item.model_fields["kind"].default == part]
        model = tagged[0] if tagged else candidates[0] if len(candidates) == 1 else model
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
