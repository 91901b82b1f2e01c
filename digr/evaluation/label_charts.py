"""The figures of interest labels: the classifier's evaluation on held-out items, and the distribution of item quality."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.subplots import make_subplots

from digr.evaluation.charts import AMBER, BLUE, GREEN, GREY, INK, draw


def held_out_panels(evaluation: Mapping[str, Any], threshold: float) -> Markup:
    """Draw AUROC by kind of negative, the reliability diagram and the threshold curve.

    Args:
        evaluation: the result of `digr.rewards.calibration.held_out_evaluation`.
        threshold: the run's threshold, drawn as a line.
    """
    titles = ("AUROC against each negative", "Reliability", "What a threshold keeps")
    figure = make_subplots(cols=3, subplot_titles=titles, horizontal_spacing=0.09)
    metrics = evaluation["metrics"]
    kinds = ["auroc", *sorted(name for name in metrics if name.startswith("auroc_"))]
    values = [metrics[name] for name in kinds if name in metrics]
    names = [name.removeprefix("auroc_").replace("auroc", "all").replace("_", " ") for name in kinds if name in metrics]
    colours = [INK, *[BLUE] * len(names)][: len(names)]
    text = [f"{value:.3f}" for value in values]
    figure.add_bar(x=names, y=values, marker_color=colours, text=text, textposition="outside", showlegend=False, col=1, row=1)
    figure.update_yaxes(range=[0.5, 1.05], col=1, row=1)
    line = {"color": GREY, "dash": "dot"}
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=line, showlegend=False, hoverinfo="skip", col=2, row=1)
    bins = evaluation["reliability"]
    largest = max((row["pairs"] for row in bins), default=1)
    figure.add_scatter(
        x=[row["probability"] for row in bins],
        y=[row["share"] for row in bins],
        customdata=[row["pairs"] for row in bins],
        mode="lines+markers",
        marker={"size": [6 + 14 * (row["pairs"] / largest) ** 0.5 for row in bins], "color": BLUE},
        line_color=BLUE,
        hovertemplate="probability %{x:.2f}, true %{y:.2f}, %{customdata} pairs<extra></extra>",
        showlegend=False,
        col=2,
        row=1,
    )
    figure.update_xaxes(title_text="probability given", range=[0, 1], col=2, row=1)
    figure.update_yaxes(title_text="share that was mined", range=[0, 1.05], col=2, row=1)
    curve = evaluation["threshold"]
    for colour, name in ((BLUE, "precision"), (GREEN, "recall"), (AMBER, "trusted_rate")):
        figure.add_scatter(
            x=[row["threshold"] for row in curve],
            y=[row[name] for row in curve],
            mode="lines",
            line_color=colour,
            name=name.replace("_", " "),
            hovertemplate="threshold %{x:.2f}: %{y:.3f}<extra></extra>",
            col=3,
            row=1,
        )
    figure.add_vline(x=threshold, line_dash="dot", line_color=INK, col=3, row=1)
    figure.update_xaxes(title_text="threshold", range=[0, 1], col=3, row=1)
    figure.update_yaxes(range=[0, 1.05], col=3, row=1)
    figure.update_layout(legend={"orientation": "h", "x": 1, "xanchor": "right", "y": -0.22})
    return draw(figure, "chart-held-out", 350, legend=True)


def quality_bars(counts: Sequence[int]) -> Markup:
    """Draw a histogram of item quality over [0, 1]."""
    width = 1 / len(counts)
    figure = go.Figure()
    figure.add_bar(
        x=[(place + 0.5) * width for place in range(len(counts))],
        y=list(counts),
        width=width,
        marker={"color": GREEN, "line": {"color": "#ffffff", "width": 1}},
        hovertemplate="quality about %{x:.2f}: %{y} items<extra></extra>",
    )
    figure.update_xaxes(title_text="quality", range=[0, 1])
    figure.update_yaxes(title_text="items")
    return draw(figure, "chart-quality", 260, gap=0)
