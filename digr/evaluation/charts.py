"""The figures of the report, as HTML fragments for a page that contains Plotly's script."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.subplots import make_subplots

from digr.ranking.systems import SERVED

GREY, BLUE, GREEN, AMBER, PURPLE, INK = "#9aa5b1", "#2563eb", "#0f9d76", "#d97706", "#7c3aed", "#1f2933"
PALETTE = (BLUE, GREEN, AMBER, "#8b5cf6", "#db2777", GREY)
ROW_HEIGHT = 34
"""Pixels of a bar with its gap."""


def system_colour(system: str) -> str:
    """Return grey for a baseline, blue and green for policies, purple for the served lists, amber for ablations."""
    if system == SERVED.name:
        return PURPLE
    if not system.startswith(("sid_", SERVED.name)):
        return GREY
    return AMBER if is_ablation(system) else GREEN if system.startswith("sid_grpo") else BLUE


def is_ablation(system: str) -> bool:
    """Return whether a system is an ablation: a policy of a variant, or a ranker that is not served."""
    return "[" in system or (system.startswith(SERVED.name) and system != SERVED.name)


def metric_bars(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw HR and NDCG at the deepest cutoff with 95 % intervals.

    Args:
        rows: `metrics` rows of one split and slice, names hr and ndcg, in the order of the table.
    """
    k = max(row["k"] for row in rows)
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=(f"HR@{k}", f"NDCG@{k}"))
    for column, name in enumerate(("hr", "ndcg"), 1):
        chosen = [row for row in rows if row["name"] == name and row["k"] == k and not math.isnan(row["value"])]
        if not chosen:
            continue
        figure.add_bar(
            x=[row["value"] for row in chosen],
            y=[row["system"] for row in chosen],
            orientation="h",
            marker_color=[system_colour(row["system"]) for row in chosen],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [row["high"] - row["value"] for row in chosen],
                "arrayminus": [row["value"] - row["low"] for row in chosen],
                "color": INK,
                "thickness": 1.2,
                "width": 4,
            },
            hovertemplate="%{y}: %{x:.4f}<extra></extra>",
            col=column,
            row=1,
        )
        figure.update_xaxes(range=[0, 1.08 * max(row["high"] for row in chosen) or 1], col=column, row=1)
    figure.update_yaxes(autorange="reversed")
    return draw(figure, "chart-metrics", 90 + ROW_HEIGHT * len({row["system"] for row in rows}))


def level_bars(usage: Mapping[str, Sequence[float]]) -> Markup:
    """Draw the share of codes used per level.

    Args:
        usage: variant -> usage rate of each level.
    """
    figure = go.Figure()
    for colour, (variant, rates) in zip(PALETTE * len(usage), usage.items(), strict=False):
        levels = [f"level {level}" for level in range(1, len(rates) + 1)]
        text = [f"{rate:.0%}" for rate in rates]
        figure.add_bar(x=levels, y=list(rates), name=variant, marker_color=colour, text=text, textposition="outside")
    figure.update_yaxes(range=[0, 1.12], tickformat=".0%", title_text="codes used")
    return draw(figure, "chart-levels", 300, legend=len(usage) > 1)


def curves(records: Sequence[Mapping[str, Any]], panels: Sequence[str], name: str) -> Markup | None:
    """Draw a small panel per column of a training log against its epoch or step; None if the log has none of the columns.

    Args:
        records: lines of `metrics.jsonl`; a line may lack a column, for example because not every step is validated.
        panels: columns to draw, in order; absent ones are left out.
        name: suffix of the figure's id, unique on the page.
    """
    shown = [panel for panel in panels if any(isinstance(record.get(panel), int | float) for record in records)]
    if not shown:
        return None
    clock = "epoch" if any("epoch" in record for record in records) else "step"
    titles = [panel.replace("_", " ") for panel in shown]
    figure = make_subplots(cols=len(shown), subplot_titles=titles, horizontal_spacing=0.07)
    for column, panel in enumerate(shown, 1):
        points = [(record.get(clock, place), record[panel]) for place, record in enumerate(records) if panel in record]
        mode = "lines+markers" if len(points) <= 40 else "lines"
        figure.add_scatter(
            x=[point[0] for point in points],
            y=[point[1] for point in points],
            mode=mode,
            line_color=PALETTE[(column - 1) % len(PALETTE)],
            hovertemplate=f"{clock} %{{x}}: %{{y:.4g}}<extra></extra>",
            col=column,
            row=1,
        )
        figure.update_xaxes(title_text=clock, col=column, row=1)
    return draw(figure, f"chart-{name}", 270)


def stage_bars(seconds: Mapping[str, float]) -> Markup:
    """Draw how long each stage took, in seconds, in the order given."""
    figure = go.Figure()
    text = [f"{value:,.1f} s" for value in seconds.values()]
    figure.add_bar(
        x=list(seconds.values()), y=list(seconds), orientation="h", marker_color=BLUE, text=text, textposition="outside"
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text="seconds", range=[0, 1.15 * max(seconds.values(), default=1) or 1])
    return draw(figure, "chart-stages", 90 + 28 * len(seconds))


def draw(figure: go.Figure, name: str, height: int, legend: bool = False, gap: float = 0.35) -> Markup:
    """Return a figure in the report's style as an HTML fragment; `gap` is the empty share between bars."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        showlegend=legend,
        margin={"l": 10, "r": 20, "t": 40, "b": 40},
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        bargap=gap,
    )
    figure.update_yaxes(automargin=True)
    config = {"displayModeBar": False, "responsive": True}
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=config))
