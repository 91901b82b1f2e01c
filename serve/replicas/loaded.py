"""What each replica has loaded, told in the state, so that a version becomes the default only where every replica has it."""

import json
from collections.abc import Callable, Mapping

from pydantic import BaseModel, ConfigDict, ValidationError

from digr.serving.state import StateFile, StateStore

FRESH_SECONDS, TELL_SECONDS, KEPT_SECONDS = 15.0, 4.0, 3600.0
"""A replica that told nothing for longer counts as gone; how often one tells; when the file of one is removed."""


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    versions: dict[str, str]


class Replicas:
    """Tells what this replica has loaded, and asks what the others have."""

    def __init__(self, state: StateStore, replica: str, clock: Callable[[], float]) -> None:
        self._state, self._replica, self._clock = state, replica, clock
        self._told: tuple[dict[str, str], float] | None = None

    def tell(self, versions: Mapping[str, str]) -> None:
        """Write the digests of the loaded versions by name, if they have changed or were written some time ago."""
        now, told = self._clock(), dict(versions)
        if self._told is None or self._told[0] != told or now - self._told[1] >= TELL_SECONDS:
            self._state.write(f"replicas/{self._replica}.json", json.dumps({"versions": told}).encode())
            self._told = told, now

    def lacking(self, name: str, digest: str) -> list[str]:
        """Return the live replicas that do not have this build of a version."""
        lacking = []
        for file in self._state.list_files("replicas"):
            replica = file.name.removeprefix("replicas/").removesuffix(".json")
            if file.age_seconds > KEPT_SECONDS:
                self._state.remove(file.name)
            elif file.age_seconds <= FRESH_SECONDS and replica != self._replica and self._versions(file).get(name) != digest:
                lacking.append(replica)
        return lacking

    def _versions(self, file: StateFile) -> dict[str, str]:
        """Return what a replica told; nothing where its file is no such thing, because its owner writes it anew."""
        try:
            return _Told.model_validate_json(self._state.read(file.name) or b"").versions
        except ValidationError:
            return {}
