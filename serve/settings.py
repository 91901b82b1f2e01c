"""What the application is started with, and what may be changed while it runs."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from digr.artifacts import is_remote
from serve.schemas import Contract, VersionName


class VersionSettings(Contract):
    """Where a version of policy and catalogue comes from."""

    run_dir: str = Field(min_length=1)
    """Folder of a trained run, local or s3://."""
    variant: str = Field("", pattern=r"^[a-z0-9_]*$")
    """Ablation of the run; empty for the main one."""
    policy: Literal["newest", "policy_sft", "policy_grpo"] = "newest"
    """Which of the run's policies; the newest is the one after GRPO, if there is one."""

    def absolute(self) -> "VersionSettings":
        """Return the same with a full path: replicas have another working directory."""
        return self if is_remote(self.run_dir) else self.model_copy(update={"run_dir": str(Path(self.run_dir).absolute())})


class AppArguments(Contract):
    """Arguments of the application, from the command line or serve/config.yaml."""

    run_dir: str = Field(default_factory=lambda: os.environ.get("DIGR_RUN_DIR", ""))
    """Folder of a trained run, served as version `main`; the environment variable DIGR_RUN_DIR if not given."""
    models: dict[VersionName, VersionSettings] = Field(default_factory=dict)
    """Versions by name, loaded all at once, instead of `run_dir`."""
    default_model: VersionName | None = None
    """Version for requests that name none; the first one if not given."""
    beam_width: int = Field(50, ge=1, le=1000)
    """Beams kept, and the largest k a request may ask for."""
    num_threads: int = Field(0, ge=0)
    """PyTorch threads of a replica on CPU; 0 leaves PyTorch's own choice."""
    deadline_seconds: float = Field(10.0, gt=0, le=600)
    """A request that has no answer by then gets a problem (504)."""
    max_pending: int = Field(64, ge=1, le=100_000)
    """Requests that wait or are decoded in a replica; one more gets a problem (429) with Retry-After."""
    max_body_bytes: int = Field(1_000_000, ge=1000)
    """Largest body of a request."""
    max_image_side: int = Field(512, ge=16, le=2048)
    """Images are served as PNG of at most this side, pixels."""
    max_image_bytes: int = Field(10_000_000, ge=1000)
    """Largest file read for an image."""

    @model_validator(mode="after")
    def _default_is_a_version(self) -> "AppArguments":
        if self.models and self.default_model and self.default_model not in self.models:
            raise ValueError(f"default_model = {self.default_model!r} is none of the models {sorted(self.models)}")
        return self

    def versions(self) -> dict[str, VersionSettings]:
        """Return the versions by name, with absolute paths.

        Raises:
            ValueError: no run is given.
        """
        if not self.models and not self.run_dir:
            raise ValueError("serve: no run to serve; pass run_dir=<folder of a trained run> or set DIGR_RUN_DIR")
        models = self.models or {"main": VersionSettings(run_dir=self.run_dir)}
        return {name: version.absolute() for name, version in models.items()}
