"""The served ranker, and the ablations to which it is compared: without a source, or with other phrases than interests."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int

from digr.config.ranking import Ablation
from digr.ranking.features import Pooled, base_features, base_names, interest_features, interest_names
from digr.ranking.neighbours import HistoryItems
from digr.ranking.sources import ASKED, SOURCES, Candidates, choose, sources_of_families
from digr.ranking.views import View

SHUFFLES = 3
"""Number of permutations of the ablation `shuffled`."""


class System(NamedTuple):
    """A ranker over some of the sources and features."""

    name: str
    family: str = ""
    """Family whose phrases are used as interests; "" for none."""
    generation: bool = True
    """Whether the policy's list is a source."""
    model: str = ""
    """System whose fitted model is used; "" for a model of its own."""

    @property
    def fitted(self) -> str:
        """Name of the model."""
        return self.model or self.name


SERVED = System("ranked", "interests")


def systems_of(ablations: Sequence[Ablation]) -> list[System]:
    """Return the served system and its ablations.

    The model does not use the source of a candidate, so the system without generation has the served system's model.
    """
    systems = [SERVED]
    if "generation" in ablations:
        systems.append(System("ranked_without_generation", "interests", generation=False, model=SERVED.name))
    if "interests" in ablations:
        systems.append(System("ranked_without_interests"))
    if "shuffled" in ablations:
        systems += [System(f"ranked_{name}", name) for name in shuffled_families()]
    if "text_twin" in ablations:
        systems.append(System("ranked_text_twin", "text_twin"))
    return systems


def shuffled_families() -> list[str]:
    """Return the names of the families with the interests of other items."""
    return [f"shuffled_{number}" for number in range(SHUFFLES)]


def families_of(systems: Sequence[System]) -> tuple[str, ...]:
    """Return the distinct families that the systems need."""
    return tuple(dict.fromkeys(system.family for system in systems if system.family))


class Features(NamedTuple):
    """Features of C candidates, by family."""

    base: Float32[np.ndarray, "C F"]
    families: dict[str, Float32[np.ndarray, "C G"]]

    def of(self, system: System, rows: Bool[np.ndarray, " C"] | Int[np.ndarray, " c"]) -> Float32[np.ndarray, "c F"]:
        """Return the features of some candidates for a system."""
        parts = [self.base[rows], *([self.families[system.family][rows]] if system.family else [])]
        return np.concatenate(parts, axis=1)


def feature_names(system: System, grains: int) -> list[str]:
    """Return the names of the columns of `Features.of`."""
    return base_names() + (interest_names(grains) if system.family else [])


def build_features(view: View, histories: HistoryItems, pooled: Pooled, candidates: Candidates) -> Features:
    """Compute the features of all candidates, for every family of the view; `pooled` must be that of `propose`."""
    families = {
        name: interest_features(family, histories, pooled.steps[name], candidates.pairs) for name, family in view.families.items()
    }
    return Features(base_features(view, histories, pooled, candidates.pairs), families)


def sources_of(system: System) -> list[str]:
    """Return the sources of a system."""
    sources = [name for name in SOURCES if system.generation or name != "generation"]
    return sources + sources_of_families([system.family] if system.family else [])


def candidates_of(system: System, candidates: Candidates, k: int = 0) -> Bool[np.ndarray, " C"]:
    """Mark the candidates of a system, including those that a request asks for; at least k if so many are proposed."""
    asked = [name for name in ASKED if name in candidates.sources]
    return choose(candidates, [*sources_of(system), *asked], k)
