"""A sweep over codebooks: its candidates, their ranking, and how well each diagnostic predicts the policy's NDCG."""

from collections.abc import Mapping, Sequence
from typing import Any

from digr.config.sids import SidsConfig, TuneConfig
from digr.sids.sizes import auto_level_sizes

NDCG = "valid_ndcg@10"
DIAGNOSTICS = (
    "usage_rate",
    "perplexity",
    "raw_collision_rate",
    "collision_rate",
    "suffix_rate",
    "reconstruction_r2",
    "neighbour_prefix_share",
    "cointeraction_prefix_share",
    "chance_prefix_share",
)
"""Facts of `item_sids` in a sweep's table, in order."""
FEWEST_FOR_CORRELATION = 4


def candidates(sids: SidsConfig, tune: TuneConfig, num_items: int) -> list[dict[str, Any]]:
    """Return every distinct combination to try, as values of `sids`; residual k-means has no latent dimension.

    Args:
        num_items: items of the catalogue, for level sizes "auto".
    """
    latents = tune.latent_dims or (sids.latent_dim,)
    all_sizes = dict.fromkeys(auto_level_sizes(num_items) if sizes == "auto" else sizes for sizes in tune.level_sizes)
    return [
        {"quantiser": quantiser, "level_sizes": list(sizes), "latent_dim": latent}
        for quantiser in tune.quantisers
        for sizes in all_sizes
        for latent in (latents if quantiser == "rqvae" else latents[:1])
    ]


def candidate_name(candidate: Mapping[str, Any]) -> str:
    """Return a candidate's name, made of its settings."""
    latent = f"-{candidate['latent_dim']}" if candidate["quantiser"] == "rqvae" else ""
    return f"{candidate['quantiser']}{latent}-{'x'.join(map(str, candidate['level_sizes']))}"


def diagnostic(facts: Mapping[str, Any], name: str) -> float:
    """Return a diagnostic as one number: the worst level's for the use of codes, the first level's for prefixes."""
    value = facts[name]
    if not isinstance(value, list):
        return float(value)
    return float(min(value) if name in ("usage_rate", "perplexity") else value[0])


def rank_rows(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Mapping[str, Any]]:
    """Return the finished rows, best first: by validation NDCG if known, then by the metric."""
    sign = 1 if metric == "raw_collision_rate" else -1
    done = [row for row in rows if row["status"] == "ok"]
    return sorted(done, key=lambda row: (-(row.get(NDCG) or 0.0), sign * row["score"]))


def correlations(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return Spearman's correlation of every diagnostic with validation NDCG, over the rows that have both.

    None for a diagnostic that is equal in all rows; empty with fewer than four rows.
    """
    from scipy.stats import spearmanr

    known = [row for row in rows if row.get(NDCG) is not None]
    if len(known) < FEWEST_FOR_CORRELATION:
        return {}
    scores = [row[NDCG] for row in known]
    values = {name: [diagnostic(row, name) for row in known] for name in DIAGNOSTICS}
    return {
        name: round(float(spearmanr(found, scores).statistic), 3) if len(set(found)) > 1 and len(set(scores)) > 1 else None
        for name, found in values.items()
    }


def row_text(row: Mapping[str, Any]) -> str:
    """Return a row of the sweep as one line of text."""
    ndcg = f"  NDCG@10 {row[NDCG]:.4f}" if row.get(NDCG) is not None else ""
    return (
        f"{row['trial']:30} usage >= {min(row['usage_rate']):6.1%}  colliding {row['raw_collision_rate']:6.1%}  "
        f"R2 {row['reconstruction_r2']:.3f}  neighbours {row['neighbour_prefix_share'][0]:.3f}  co-interaction "
        f"{row['cointeraction_prefix_share'][0]:.3f}  {row['seconds']:.0f} s{ndcg}"
    )
