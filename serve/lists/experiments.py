"""Experiments: which version answers a user. It follows from the user's id alone, so all replicas agree, always."""

import hashlib
import math

from pydantic import Field, model_validator

from serve.contract.schemas import Contract, VersionName

_SUM_ERROR = 1e-6


class ExperimentSettings(Contract):
    """A split of the users between versions."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    """Named in replies and in the log; the split depends on it, so another name splits anew."""
    arms: dict[VersionName, float] = Field(min_length=1, max_length=16)
    """Version -> share of the users; shares add up to 1."""

    @model_validator(mode="after")
    def _shares_add_up(self) -> "ExperimentSettings":
        total = sum(self.arms.values())
        if not all(0 <= share <= 1 for share in self.arms.values()) or abs(total - 1) > _SUM_ERROR:
            raise ValueError(f"arms = {self.arms}: shares are from 0 to 1 and add up to 1; these add up to {total:g}")
        return self

    def arm_of(self, user_id: str) -> str:
        """Return the arm of a user.

        Arms draw by the user's hash and the largest draw wins (weighted rendezvous hashing), so the order of arms means nothing,
        and a change of shares moves only as many users as it must.
        """
        return max(sorted(self.arms), key=lambda arm: self._draw(user_id, arm))

    def _draw(self, user_id: str, arm: str) -> float:
        digest = hashlib.sha256(f"{self.name}\0{arm}\0{user_id}".encode()).digest()
        uniform = (int.from_bytes(digest[:6], "big") + 0.5) / 2**48
        return -self.arms[arm] / math.log(uniform)


class ShadowSettings(Contract):
    """A version that also decodes requests that others answer; its lists are only logged."""

    model: VersionName
    share: float = Field(1.0, gt=0, le=1)
    """Share of the requests, drawn at random."""
