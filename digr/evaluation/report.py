"""The report of a run: one HTML file that loads nothing from other hosts."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from digr.artifacts import Manifest, Store
from digr.evaluation import charts, label_charts, ranking_facts, run_facts, sid_charts, sid_facts
from digr.evaluation.interest_metrics import MEASURES
from digr.partitions import STARTS

METRIC_TITLES = {"hr": "HR", "ndcg": "NDCG"}
INTEREST_TITLES = dict(zip(MEASURES, ("interest HR", "interest NDCG", "diversity"), strict=True))
DATA = ("items", "interactions", "histories")
RLDI = ("classifier", "interest_labels")
LISTS = ("recommendations/sft_test", "recommendations/grpo_test")
RANKING = ("canonical_interests", "item_neighbours", "ranker", "recommendations/ranked_test")
VARIANT = ("item_embeddings", "item_sids", "policy_examples", "policy_sft", "policy_grpo")
STAGES = (
    *DATA,
    "interest_responses",
    "interests",
    *RLDI,
    *VARIANT,
    *RANKING,
    "towers",
    "recommendations/sft_test",
    "recommendations/grpo_test",
)
SFT_PANELS = ("loss", "hr@10", "ndcg@10")
GRPO_PANELS = ("reward", "ndcg@10", "kl", "dead_group_rate")
OWN_TABLE = ("miners", "labelers", "agreement", "quality_counts", "examples", STARTS)
"""Facts that are left out of the tables of facts, because a figure or table of their own shows them or nobody needs them."""
BEST_ITEMS = 5
"""Number of items of a list in the report."""


class RunDescription(NamedTuple):
    """Facts of the run that its artifacts do not have."""

    config: Mapping[str, Any]
    variants: Sequence[str]
    """Ablations, without the main run."""
    command: str
    generated: str
    """Time of writing, as shown."""


def metrics_text(rows: Sequence[Mapping[str, Any]], split: str) -> str:
    """Return the metrics of all systems on one split as a plain table: value and 95 % interval of each HR@k and NDCG@k.

    A second table has the measures of interests, if there are any, at the cutoff nearest to 10. The last line explains the
    intervals.
    """
    near = min((row["k"] for row in rows), key=lambda k: abs(k - 10), default=10)
    tables = [_ranking_table(rows, split, METRIC_TITLES)]
    tables.append(_ranking_table([row for row in rows if row["k"] == near], split, INTEREST_TITLES))
    lines = [line for table in tables if table["systems"] for line in [*_table_lines(table, split), ""]]
    return "\n".join([*lines[:-1], "in brackets: 95 % bootstrap intervals, users resampled"])


def _table_lines(table: Mapping[str, Any], split: str) -> list[str]:
    width = max(map(len, [split, *table["systems"]]))
    head = f"{split:<{width}}" + "".join(f"  {title:<24}" for title in table["columns"])
    lines = [head, "-" * len(head)]
    for system, cells in table["systems"].items():
        values = [f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]" for row in cells]
        lines.append(f"{system:<{width}}" + "".join(f"  {value:<24}" for value in values))
    return lines


def strict_json(value: Any) -> str:
    """Return metrics and their facts as strict JSON; intervals that do not exist (NaN) become null."""
    return json.dumps(_without_nan(value), indent=1, allow_nan=False)


def build_report(
    store: Store, run: RunDescription, rows: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]
) -> str:
    """Return the report as HTML.

    The report names stages that have not been built. All texts of the data are escaped.

    Args:
        store: the main run.
        rows: rows of the `metrics` table.
        comparisons: each system against each earlier one, see `metrics.evaluate_split`.
    """
    rng = np.random.default_rng(run.config["run"]["seed"])
    stores = {"main": store} | {name: Store(store.root, name) for name in run.variants}
    built = {
        f"{name} [{variant}]" if variant != "main" else name: manifest
        for variant, place in stores.items()
        for name, manifest in run_facts.find_manifests(place, STAGES if variant == "main" else VARIANT).items()
    }
    made = {name: manifest for name, manifest in built.items() if manifest is not None}
    environment = Environment(
        loader=PackageLoader("digr.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "fact": _fact, "words": lambda name: str(name).replace("_", " ")}
    environment.tests["ablation"] = charts.is_ablation
    return environment.get_template("report.html").render(
        run=run,
        seed=run.config["run"]["seed"],
        folder=store.root,
        hardware=run_facts.hardware(),
        versions=next((manifest.versions for manifest in reversed(made.values()) if manifest.versions), {}),
        config_json=json.dumps(run.config, indent=2, ensure_ascii=False),
        results=_results(rows, comparisons),
        data=_facts_of(built, DATA),
        histories=getattr(built["histories"], "facts", {}).get("examples", []),
        mining={
            "facts": _facts_of(built, ("interest_responses", "interests")),
            "miners": _miners(built["interests"], run.config["ablations"], rows),
            "status": run_facts.mining_status(store),
            "examples": run_facts.item_examples(store, 6, rng),
        },
        rldi=_labels(store, built, run.config["labels"]["threshold"]),
        sids=_sids(stores, run.config["run"]["seed"]),
        ranking={
            "sources": ranking_facts.source_table(store, max(row["k"] for row in rows)),
            "features": ranking_facts.feature_shares(store),
            "interests": ranking_facts.canonical_groups(store),
            "proven": [
                {"name": name} | made[name].facts for name in LISTS if "proven_rate" in getattr(made.get(name), "facts", {})
            ],
        },
        training=_training(stores),
        rollouts=run_facts.rollout_examples(store, 4),
        samples=run_facts.recommendation_examples(store, 5, BEST_ITEMS, rng),
        seconds=charts.stage_bars({name: manifest.seconds for name, manifest in made.items()}) if made else None,
        missing=[name for name, manifest in built.items() if manifest is None],
        plotly_script=Markup(get_plotlyjs()),
    )


def _results(rows: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    splits = list(dict.fromkeys(row["split"] for row in rows))
    shown = "test" if "test" in splits else splits[-1]
    k = max(row["k"] for row in rows)
    ranking = [row for row in rows if row["split"] == shown and row["slice"] == "all" and row["name"] in ("hr", "ndcg")]
    return {
        "split": shown,
        "k": k,
        "tables": {
            split: _ranking_table(rows, split, METRIC_TITLES) for split in [shown, *(name for name in splits if name != shown)]
        },
        "interests": _ranking_table(rows, shown, INTEREST_TITLES),
        "chart": charts.metric_bars(ranking),
        "slices": _slice_table(rows, shown, k),
        "gains": [
            row
            for row in comparisons
            if (row["split"], row["name"], row["k"]) == (shown, "ndcg", k) and _is_compared(row["system"])
        ],
        "headline": max(
            (row for row in reversed(ranking) if row["name"] == "ndcg" and row["k"] == k), key=lambda row: row["value"]
        ),
    }


def _is_compared(system: str) -> bool:
    """Return whether the report lists a system's gains over each earlier one."""
    return system.startswith(("sid_", "ranked")) and not charts.is_ablation(system)


def _ranking_table(rows: Sequence[Mapping[str, Any]], split: str, titles: Mapping[str, str]) -> dict[str, Any]:
    chosen = [row for row in rows if row["split"] == split and row["slice"] == "all" and row["name"] in titles]
    columns = sorted({(row["k"], row["name"]) for row in chosen})
    cells = {(row["system"], row["k"], row["name"]): row for row in chosen}
    systems = list(dict.fromkeys(row["system"] for row in chosen))
    return {
        "columns": [f"{titles[name]}@{k}" for k, name in columns],
        "systems": {system: [cells[system, k, name] for k, name in columns] for system in systems},
        "best": [max(cells[system, k, name]["value"] for system in systems) for k, name in columns],
        "num_examples": chosen[0]["num_examples"] if chosen else 0,
    }


def _slice_table(rows: Sequence[Mapping[str, Any]], split: str, k: int) -> dict[str, Any]:
    chosen = [row for row in rows if row["split"] == split and row["k"] == k]
    hits = [row for row in chosen if row["name"] == "hr"]
    slices = {row["slice"]: row["num_examples"] for row in hits}
    systems: dict[str, dict[str, float]] = {row["system"]: {} for row in chosen}
    for row in hits:
        systems[row["system"]][row["slice"]] = row["value"]
    for row in chosen:
        if row["name"] in ("coverage", "invalid_rate"):
            systems[row["system"]][row["name"]] = row["value"]
    return {"slices": slices, "systems": systems}


def _facts_of(built: Mapping[str, Manifest | None], names: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """Return rows, rejected rows and facts of each artifact, flattened; None for one that does not exist."""
    found: dict[str, dict[str, Any] | None] = {}
    for name in names:
        manifest = built[name]
        if manifest is None:
            found[name] = None
            continue
        flat: dict[str, Any] = {"rows": manifest.rows} if manifest.rows is not None else {}
        flat |= {f"rejected: {reason}": count for reason, count in manifest.rejected.items()}
        found[name] = flat | _flatten({key: value for key, value in manifest.facts.items() if key not in OWN_TABLE})
    return found


def _labels(store: Store, built: Mapping[str, Manifest | None], threshold: float) -> dict[str, Any]:
    """Return the classifier's evaluation on held-out items, the facts of each labeler, and the distribution of item quality."""
    evaluation, labels = run_facts.held_out_evaluation(store), built["interest_labels"]
    counts = labels.facts.get("quality_counts") if labels else None
    return {
        "facts": _facts_of(built, RLDI),
        "held_out": label_charts.held_out_panels(evaluation, threshold) if evaluation else None,
        "labelers": labels.facts.get("labelers", {}) if labels else {},
        "agreement": labels.facts.get("agreement", {}) if labels else {},
        "quality": label_charts.quality_bars(counts) if counts else None,
    }


def _miners(
    manifest: Manifest | None, ablations: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Return the table of miners, with the valid NDCG of the ablation that leaves out exactly this miner, if there is one."""
    if manifest is None or not manifest.facts.get("miners"):
        return None
    k = max(row["k"] for row in rows)
    wanted = {"split": "valid", "slice": "all", "name": "ndcg", "k": k}
    ndcg = {row["system"]: row["value"] for row in rows if wanted.items() <= row.items()}
    without = {}
    for ablation in ablations:
        left_out = ablation["overrides"].get("embeddings.without_miners")
        if left_out and len(left_out) == len(ablation["overrides"]) == 1:
            without[left_out[0]] = ndcg.get(f"sid_sft[{ablation['name']}]")
    table = {name: facts | {"ndcg_without": without.get(name)} for name, facts in manifest.facts["miners"].items()}
    return {"k": k, "ndcg": ndcg.get("sid_sft"), "table": table}


def _sids(stores: Mapping[str, Store], seed: int) -> dict[str, Any] | None:
    manifests = {name: run_facts.find_manifests(store, ["item_sids"])["item_sids"] for name, store in stores.items()}
    facts = {name: manifest.facts for name, manifest in manifests.items() if manifest is not None}
    if not facts:
        return None
    usage = {name: fact["usage_rate"] for name, fact in facts.items() if fact.get("usage_rate")}
    keys = list(dict.fromkeys(key for fact in facts.values() for key in fact if key != "largest_collisions"))
    main = stores["main"]
    overview = sid_facts.sid_overview(main, np.random.default_rng(seed))
    laid_out = sid_facts.item_map(main, seed)
    return {
        "chart": charts.level_bars(usage) if usage else None,
        "variants": list(facts),
        "facts": {key: [fact.get(key) for fact in facts.values()] for key in keys},
        "tree": sid_charts.prefix_tree(overview.nodes, overview.num_items) if overview else None,
        "codes": sid_charts.code_bars(overview.code_counts) if overview else None,
        "map": sid_charts.item_points(laid_out) if laid_out else None,
        "num_mapped": len(laid_out["first"]) if laid_out else 0,
        "collisions": sid_facts.collisions(main),
    }


def _training(stores: Mapping[str, Store]) -> list[dict[str, Any]]:
    shown = []
    for variant, store in stores.items():
        for stage, panels in (("sft", SFT_PANELS), ("grpo", GRPO_PANELS)):
            log = run_facts.training_log(store, f"policy_{stage}")
            if log is None and variant != "main":
                continue
            chart = charts.curves(log, panels, f"{stage}-{variant}") if log else None
            shown.append(
                {"title": stage.upper() if variant == "main" else f"{stage.upper()}, ablation {variant}", "chart": chart}
            )
    return shown


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}: ") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _number(value: float | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _fact(value: Any) -> str:
    """Return a JSON value as readable text: lists with commas, long ones shortened."""
    if isinstance(value, list):
        return ", ".join(_fact(item) for item in value[:12]) + (", …" if len(value) > 12 else "")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
