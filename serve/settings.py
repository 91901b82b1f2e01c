"""Settings of the application: those of its start, and those that may change while it runs."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from digr.config.images import ImagesConfig
from digr.serving.state import state_address
from serve.contract.event_schemas import EventType
from serve.contract.schemas import Contract, VersionName
from serve.lists.experiments import ExperimentSettings, ShadowSettings


def _listed(value: Any) -> Any:
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


class VersionSettings(Contract):
    """Where a version of policy and catalogue comes from."""

    run_dir: str = Field(min_length=1)
    """Folder of a trained run, local or s3://."""
    variant: str = Field("", pattern=r"^[a-z0-9_]*$")
    """Ablation of the run; empty for the main one."""
    policy: Literal["newest", "policy_sft", "policy_grpo"] = "newest"
    """Which of the run's policies; the newest is the one after GRPO, if there is one."""
    ranker: Literal["on", "off"] = "on"
    """Whether lists are ranked over all sources where the run has a ranker; "off" gives the policy's own."""

    def absolute(self) -> "VersionSettings":
        """Return the same with a full path: replicas have another working directory."""
        return self if "://" in self.run_dir else self.model_copy(update={"run_dir": str(Path(self.run_dir).absolute())})


class LiveSettings(Contract):
    """What changes without a restart of the replicas: Ray Serve's `user_config`."""

    models: dict[VersionName, VersionSettings] = Field(default_factory=dict)
    """Versions by name, loaded all at once."""
    default_model: VersionName | None = None
    """Version for requests that name none; the first one if not given."""
    experiment: ExperimentSettings | None = None
    """Split of the users between versions, for requests that have a user_id and name no version."""
    shadow: ShadowSettings | None = None
    """Version that also decodes requests that name none, to be compared in the log."""

    @model_validator(mode="after")
    def _default_is_a_version(self) -> "LiveSettings":
        if self.models and self.default_model and self.default_model not in self.models:
            raise ValueError(f"default_model = {self.default_model!r} is none of the models {sorted(self.models)}")
        if self.models:
            named = {"experiment": [*(self.experiment.arms if self.experiment else ())]}
            named["shadow"] = [self.shadow.model] if self.shadow else []
            for field, names in named.items():
                if unknown := sorted(set(names) - set(self.models)):
                    raise ValueError(f"{field}: {', '.join(unknown)}: none of the models {sorted(self.models)}")
        return self

    @property
    def default(self) -> str:
        """Name of the default version."""
        return self.default_model or next(iter(self.models))


class AppArguments(LiveSettings):
    """Arguments of the application, from the command line or serve/config.yaml."""

    run_dir: str = Field(default_factory=lambda: os.environ.get("DIGR_RUN_DIR", ""))
    """Folder of a trained run, served as version `main` unless there are `models`; the variable DIGR_RUN_DIR if not given."""
    state_dir: str = ""
    """Folder on a disk that all replicas see, or s3://bucket/prefix, for changes of the catalogue and the chosen default version;
    if not given, the folder `serving` of run_dir where all versions are of it and it is local. Else nothing can be changed."""
    events_dir: str = ""
    """Folder or s3:// address for events and the log of lists; the folder `events` of state_dir if not given."""
    history_events: Annotated[list[EventType], BeforeValidator(_listed)] = Field(
        default_factory=lambda: list(get_args(EventType))
    )
    """Types of events that become part of a user's history; on the command line with commas between."""
    impressions: Literal["on", "off"] = "on"
    """Whether lists are logged, where there is an events_dir."""
    max_state_events: int = Field(200_000, ge=1)
    """Newest events kept in the memory of a replica, about 400 bytes each."""
    keys_file: str = ""
    """TOML file of API keys, see `digr keys`; without one only this machine is answered, and no proxy may stand before it."""
    beam_width: int = Field(50, ge=1, le=1000)
    """Beams kept, and the largest k a request may ask for."""
    num_threads: int = Field(0, ge=0)
    """PyTorch threads of a replica on CPU; 0 leaves PyTorch's own choice."""
    deadline_seconds: float = Field(10.0, gt=0, le=600)
    """A request without an answer after this time gets a problem (504)."""
    max_pending: int = Field(128, ge=1, le=100_000)
    """Lists that wait or are decoded in a replica, in equal shares of those who ask at once; one more gets a problem (429)."""
    max_body_bytes: int = Field(1_000_000, ge=1000)
    """Largest body of a request."""
    max_paged: int = Field(500, ge=1, le=1000)
    """Items of a list that pages rank; behind them they go on by popularity."""
    max_added_items: int = Field(10_000, ge=0)
    """Items that may be added before the run must be built again with them."""
    max_changed_items: int = Field(100_000, ge=0)
    """Items that may be changed or deleted before the run must be built again."""
    max_image_side: int = Field(512, ge=16, le=2048)
    """Images are served as PNG of at most this side, pixels."""
    max_image_bytes: int = Field(10_000_000, ge=1000)
    """Largest file read for an image."""
    images: ImagesConfig = ImagesConfig()
    """Where images may be read from, with the keys of `[images]` in a run's config; from a command line as JSON."""
    promote_seconds: float = Field(20.0, ge=0, le=300)
    """How long a promotion waits for replicas that do not have the version yet; a replica that has gone counts for 15 s."""
    follow_seconds: float = Field(0.5, gt=0, le=60)
    """How often a replica looks for what other replicas added or changed."""

    @field_validator("images", mode="before")
    @classmethod
    def _images_of_a_word(cls, images: Any) -> Any:
        return json.loads(images) if isinstance(images, str) else images

    def resolved(self) -> "AppArguments":
        """Return the same with the versions spelled out and absolute paths.

        Raises:
            ValueError: no run is given, or state_dir is of an unsupported kind.
        """
        if not self.models and not self.run_dir:
            raise ValueError("serve: no run to serve; pass run_dir=<folder of a trained run> or set DIGR_RUN_DIR")
        models = self.models or {"main": VersionSettings(run_dir=self.run_dir)}
        is_own = "://" not in self.run_dir and all(version.run_dir == self.run_dir for version in models.values())
        state_dir = self.state_dir or (f"{self.run_dir}/serving" if is_own else "")
        events_dir = self.events_dir or (f"{state_dir}/events" if state_dir else "")
        if events_dir and "://" not in events_dir:
            events_dir = str(Path(events_dir).absolute())
        return self.model_copy(
            update={
                "events_dir": events_dir,
                "models": {name: version.absolute() for name, version in models.items()},
                "state_dir": state_address(state_dir) if state_dir else "",
                "keys_file": str(Path(self.keys_file).absolute()) if self.keys_file else "",
            }
        )

    def live(self) -> LiveSettings:
        """Return the settings that may change while replicas run."""
        return LiveSettings(models=self.models, default_model=self.default_model, experiment=self.experiment, shadow=self.shadow)

    def fixed(self) -> "AppArguments":
        """Return the other settings; changing one starts new replicas."""
        return self.model_copy(update={"models": {}, "default_model": None, "experiment": None, "shadow": None, "run_dir": ""})
