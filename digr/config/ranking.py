"""Choices of how served lists are ranked: sources of candidates, canonical interests and the ranker."""

from typing import Literal

from pydantic import Field

from digr.config.base import Section

Ablation = Literal["generation", "interests", "shuffled", "text_twin"]


class RankingConfig(Section):
    """The ranker over named sources, whose lists are served."""

    enabled: bool = True
    """Whether lists are ranked; without it the policy's own are served. Variants of ablations are never ranked."""
    model: Literal["trees", "gate"] = "trees"
    """LightGBM's LambdaRank, or a log-linear model whose weights depend on the request."""
    fit: Literal["auto", "period", "last_step"] = "auto"
    """Which training rows the ranker learns from, over statistics of what was before them: the last ones in time, where the train
    rows are ordered in time, or the last step of each user; "auto" takes users' last steps where the split is leave_one_out."""
    tail_rate: float = Field(0.15, gt=0, lt=1)
    """Share of the train rows that are the last ones in time (fit = "period")."""
    max_fit_rows: int = Field(60_000, ge=100)
    """Requests the ranker learns from at most, drawn at random."""
    fit_candidates: int = Field(80, ge=10, le=1000)
    """Candidates of its own that a ranker keeps of a request to learn from, drawn at random beside its target."""
    neighbours: int = Field(100, ge=5, le=1000)
    """Longest list of an item in a source."""
    half_life_rate: float = Field(0.055, gt=0)
    """Train rows after which an interaction counts half in recent popularity, as a share of all of them (fit =
    "period")."""
    interest_cosines: tuple[float, ...] = Field((0.7, 0.45), min_length=1, max_length=4)
    """Mean cosine from which phrases are one canonical interest: one grain each, the finest first."""
    max_phrases: int = Field(200_000, ge=100)
    """Distinct phrases that are linked, the most usual ones; the others join the nearest group."""
    keep_from: str = ""
    """Folder of an earlier run whose phrases keep their canonical interests, numbers and names; new phrases join these or make
    further ones. Empty groups all phrases anew."""
    rounds: int = Field(160, ge=1)
    """Trees of each seed."""
    leaves: int = Field(15, ge=2)
    """Leaves of a tree at most."""
    min_leaf_candidates: int = Field(200, ge=1)
    """Candidates in a leaf at least."""
    seeds: int = Field(2, ge=1)
    """Sets of trees whose scores are averaged."""
    gate_l2: float = Field(1e-3, ge=0)
    """Weight decay of the log-linear model."""
    ablations: tuple[Ablation, ...] = ("generation", "interests", "shuffled", "text_twin")
    """Rankers that are fitted and measured beside the served one: without the policy as a source, without interests, with the
    interests of other items (three permutations), and with groups of texts in their place."""
