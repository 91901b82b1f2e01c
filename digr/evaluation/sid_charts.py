"""The figures of semantic IDs: the tree of prefixes, items per code, and the map of items."""

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from digr.evaluation.charts import PALETTE, draw
from digr.sids.sweep import NDCG, diagnostic

GOLDEN = 0.618034
"""Golden ratio: as step of the hue it gives neighbouring codes distinct colours."""
MAX_BARS = 512
"""Most bars of a level; more codes are averaged in groups of equal size."""


def prefix_tree(nodes: Sequence[Mapping[str, Any]], num_items: int) -> Markup:
    """Draw prefixes as a treemap: sizes are items, a click opens a prefix, hovering shows its interests and some items.

    Args:
        nodes: `SidOverview.nodes`.
        num_items: items of the catalogue; those below no shown prefix appear as blank space.
    """
    figure = go.Figure(
        go.Treemap(
            ids=["all", *(node["id"] for node in nodes)],
            labels=["all items", *(node["id"] for node in nodes)],
            parents=["", *(node["parent"] or "all" for node in nodes)],
            values=[num_items, *(node["num_items"] for node in nodes)],
            text=["", *(_wrapped(node["interests"][:1]) for node in nodes)],
            customdata=["", *map(_hover, nodes)],
            branchvalues="total",
            maxdepth=2,
            texttemplate="<b>%{label}</b> · %{value}<br>%{text}",
            textfont={"size": 10},
            hovertemplate="<b>%{label}</b>, %{value} items%{customdata}<extra></extra>",
            marker={"colors": ["#ffffff", *(_hue(int(node["id"].split("-")[0]), light=80) for node in nodes)]},
            tiling={"pad": 1},
        )
    )
    return draw(figure, "chart-sid-tree", 620)


def _hover(node: Mapping[str, Any]) -> str:
    parts = [f"<br><i>{escape(interest)}</i>" for interest in node["interests"]]
    return "".join([*parts, *(f"<br>· {escape(title)}" for title in node["titles"])])


def code_bars(code_counts: Sequence[np.ndarray]) -> Markup:
    """Draw the number of items of each code of each level, most used first; unused codes are at the right end."""
    titles = [f"level {level}: {np.mean(counts > 0):.1%} of {len(counts)} codes" for level, counts in enumerate(code_counts, 1)]
    figure = make_subplots(cols=len(code_counts), subplot_titles=titles, horizontal_spacing=0.06)
    for column, counts in enumerate(code_counts, 1):
        runs = np.array_split(np.sort(counts)[::-1], min(len(counts), MAX_BARS))
        figure.add_bar(
            y=[float(run.mean()) for run in runs],
            marker={"color": PALETTE[(column - 1) % len(PALETTE)], "line": {"width": 0}},
            hovertemplate="code in place %{x}: %{y} items<extra></extra>",
            col=column,
            row=1,
        )
        figure.update_xaxes(title_text="codes, most used first", col=column, row=1)
    figure.update_yaxes(title_text="items", col=1, row=1)
    return draw(figure, "chart-sid-codes", 270, gap=0.0)


def item_points(found: Mapping[str, Any]) -> Markup:
    """Draw the map of items (`sid_facts.item_map`), coloured by first code; hovering shows title and SID."""
    figure = go.Figure(
        go.Scattergl(
            x=np.round(found["points"][:, 0], 2).tolist(),
            y=np.round(found["points"][:, 1], 2).tolist(),
            mode="markers",
            marker={"size": 6, "opacity": 0.8, "color": [_hue(code) for code in found["first"]]},
            text=[f"{escape(title)}<br>{sid}" for title, sid in zip(found["titles"], found["sids"], strict=True)],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return draw(figure, "chart-sid-map", 560)


def sweep_page(rows: Sequence[Mapping[str, Any]], correlation: Mapping[str, float | None]) -> str:
    """Return a self-contained page of a sweep's finished candidates: diagnostics against each other or against NDCG.

    Args:
        rows: finished rows of `codebook_sweep`.
        correlation: `sweep.correlations`; if empty there is no NDCG, and pairs of diagnostics are drawn.
    """
    panels = [(name, NDCG) for name in correlation] or [
        ("raw_collision_rate", "reconstruction_r2"),
        ("raw_collision_rate", "neighbour_prefix_share"),
        ("raw_collision_rate", "cointeraction_prefix_share"),
    ]
    titles = [
        right.replace("_", " ")
        if right != NDCG
        else "no spread"
        if correlation[left] is None
        else f"Spearman {correlation[left]:+.2f}"
        for left, right in panels
    ]
    columns = min(3, len(panels))
    figure = make_subplots(cols=columns, rows=-(-len(panels) // columns), subplot_titles=titles, vertical_spacing=0.1)
    shown = [row for row in rows if not correlation or row.get(NDCG) is not None]
    kinds = sorted({row["quantiser"] for row in shown})
    for place, (left, right) in enumerate(panels):
        at = {"row": place // columns + 1, "col": place % columns + 1}
        for kind, colour in zip(kinds, PALETTE, strict=False):
            mine = [row for row in shown if row["quantiser"] == kind]
            figure.add_scatter(
                x=[diagnostic(row, left) for row in mine],
                y=[diagnostic(row, right) for row in mine],
                mode="markers",
                marker={"size": 9, "color": colour},
                text=[row["trial"] for row in mine],
                hovertemplate="%{text}<br>%{x:.4f}, %{y:.4f}<extra></extra>",
                name=kind,
                showlegend=not place,
                **at,
            )
        figure.update_xaxes(title_text=left.replace("_", " "), **at)
        figure.update_yaxes(title_text=right.replace("_", " "), **at)
    height = 120 + 320 * -(-len(panels) // columns)
    chart = draw(figure, "chart-sweep", height, legend=True)
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Codebook sweep</title>"
        f"<script>{get_plotlyjs()}</script></head><body style='font-family: system-ui, sans-serif; margin: 24px'>"
        f"<h1>Codebook sweep</h1>{chart}</body></html>"
    )


def _wrapped(interests: Sequence[str]) -> str:
    return "<br>".join(escape(line) for interest in interests for line in textwrap.wrap(interest, 16)[:4])


def _hue(code: int, light: int = 55) -> str:
    """Return the colour of a code, with the same hue in tree and map."""
    return f"hsl({(code * GOLDEN % 1) * 360:.0f}, 55%, {light + code % 3 * 5}%)"
