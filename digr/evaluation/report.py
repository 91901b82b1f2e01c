"""The run's report and the table that a job prints."""

from collections.abc import Mapping, Sequence
from typing import Any

METRIC_TITLES = {"hr": "HR", "ndcg": "NDCG", "coverage": "coverage", "invalid_rate": "invalid rate"}


def metrics_text(rows: Sequence[Mapping[str, Any]], split: str) -> str:
    """Return the metrics of all systems on one split as a plain table: value and 95 % interval of each HR@k and NDCG@k."""
    chosen = [row for row in rows if row["split"] == split and row["slice"] == "all" and row["name"] in ("hr", "ndcg")]
    systems = list(dict.fromkeys(row["system"] for row in chosen))
    columns = sorted({(row["k"], row["name"]) for row in chosen})
    cells = {(row["system"], row["k"], row["name"]): row for row in chosen}
    width = max(map(len, systems), default=6)
    head = f"{split:<{width}}" + "".join(f"  {f'{METRIC_TITLES[name]}@{k}':<22}" for k, name in columns)
    lines = [head, "-" * len(head)]
    for system in systems:
        values = [_with_interval(cells[system, k, name]) for k, name in columns]
        lines.append(f"{system:<{width}}" + "".join(f"  {value:<22}" for value in values))
    return "\n".join(lines)


def _with_interval(row: Mapping[str, Any]) -> str:
    return f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
