"""Choices of how served lists are ranked: sources of candidates, canonical interests and the ranker."""

from typing import Literal

from pydantic import Field

from digr.config.base import Section

Ablation = Literal["generation", "interests", "shuffled", "text_twin"]


class RankingConfig(Section):
    """The ranker over named sources, whose lists are served."""

    enabled: bool = True
    """Rank lists; false serves the policy's own lists. Ablations are never ranked."""
    model: Literal["trees", "gate"] = "trees"
    """Kind of ranker: LightGBM's LambdaRank, or a log-linear model whose weights depend on the request."""
    fit: Literal["auto", "period", "last_step"] = "auto"
    """Train rows the ranker learns from: the last in time ("period", for rows in time order), or each user's last one
    ("last_step"). Statistics use earlier rows only. "auto" is "last_step" for data.split = "leave_one_out", else "period"."""
    tail_rate: float = Field(0.15, gt=0, lt=1)
    """Share of the train rows, the last ones in time, that the ranker learns from (fit = "period")."""
    max_fit_rows: int = Field(60_000, ge=100)
    """Most train rows the ranker learns from, drawn at random."""
    fit_candidates: int = Field(80, ge=10, le=1000)
    """Candidates per training request, drawn at random from those of the ranker's sources, beside the target."""
    neighbours: int = Field(100, ge=5, le=1000)
    """Most neighbours that a source lists for an item."""
    half_life_rate: float = Field(0.055, gt=0)
    """Half-life of an interaction in recent popularity, as a share of all train rows (fit = "period")."""
    interest_cosines: tuple[float, ...] = Field((0.7, 0.45), min_length=1, max_length=4)
    """Phrases with at least this mean cosine form one canonical interest; each value makes one grain, finest first."""
    max_phrases: int = Field(200_000, ge=100)
    """Most distinct phrases that are grouped, most frequent first; the others join the nearest group."""
    keep_from: str = ""
    """Folder of an earlier run whose canonical interests keep their phrases, numbers and names; new phrases join them or form
    further ones. Empty groups all phrases anew."""
    rounds: int = Field(160, ge=1)
    """Trees per seed (model = "trees")."""
    leaves: int = Field(15, ge=2)
    """Most leaves of a tree (model = "trees")."""
    min_leaf_candidates: int = Field(200, ge=1)
    """Fewest candidates in a leaf (model = "trees")."""
    seeds: int = Field(2, ge=1)
    """Sets of trees, each from its own seed, whose scores are averaged (model = "trees")."""
    gate_l2: float = Field(1e-3, ge=0)
    """L2 penalty on the weights of the log-linear model (model = "gate")."""
    ablations: tuple[Ablation, ...] = ("generation", "interests", "shuffled", "text_twin")
    """Rankers fitted and measured beside the served one: without the policy as a source, without interests, with the interests
    of other items (three permutations), and with groups of texts in place of interests."""
