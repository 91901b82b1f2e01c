"""Draw the figures of these pages from result files: `python docs/plots.py` writes `docs/images/systems.svg`.

The numbers are read, never typed, but for those that others have published. The same files give the same bytes, so a test
holds that the committed figure is what this draws. The colours follow the reader's choice of light or dark, and the figure
brings its own background, so a page with the other choice does not make it unreadable.
"""

import json
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SYSTEMS = ROOT / "docs" / "images" / "systems.svg"

RANKED = "run_industrial_ranked_2-cores-x86-64_2026-11-30.json"
POLICY = "run_industrial_2-cores-x86-64_2026-11-30.json"
TOWERS = "run_industrial_towers_2-cores-x86-64_2026-11-30.json"


class Row(NamedTuple):
    """One system of the figure."""

    label: str
    file: str
    system: str
    """Its name in the metrics of that file."""


class Panel(NamedTuple):
    """One metric of the figure, with what others have published of it."""

    name: str
    title: str
    left: int
    """Where zero is, in pixels."""
    largest: float
    step: float
    published: tuple[tuple[str, float], ...]

    def x(self, value: float) -> float:
        """Return the place of a value, in pixels."""
        return round(self.left + value / self.largest * PANEL_WIDTH, 1)


SERVED = "ranked"
GROUPS: tuple[tuple[str, tuple[Row, ...]], ...] = (
    (
        "Counts",
        (
            Row("popularity", RANKED, "popularity"),
            Row("transition counts, last item", RANKED, "transition_counts"),
            Row("transition counts, whole history", RANKED, "transition_counts_history"),
        ),
    ),
    (
        "Trained baselines",
        (
            Row("SASRec", TOWERS, "sasrec"),
            Row("two towers (item ids and text)", TOWERS, "two_towers"),
            Row("semantic IDs of text, TIGER-style", POLICY, "sid_sft[without_interests]"),
        ),
    ),
    (
        "DIGR",
        (
            Row("policy alone", RANKED, "sid_grpo"),
            Row("ranked lists, without interests", RANKED, "ranked_without_interests"),
            Row("ranked lists (served)", RANKED, SERVED),
        ),
    ),
)
PANELS = (
    Panel("ndcg", "NDCG@10", 288, 0.16, 0.04, (("MiniOneRec", 0.117), ("V-STAR", 0.122))),
    Panel("hr", "HR@10", 604, 0.24, 0.06, (("MiniOneRec", 0.159),)),
)
CUTOFF = 10
SPLIT = "test"

WIDTH, PANEL_WIDTH, ROW, HEADING = 900, 228, 25, 27
TOP = 72
VALUE_GAP = 44
"""How far right of a panel's end its values end, in pixels."""

STYLE = """
  svg { --paper: #ffffff; --ink: #1f2328; --muted: #59636e; --line: #d8dee4; --accent: #0969da; --theirs: #9a6700 }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #0d1117; --ink: #f0f6fc; --muted: #9198a1; --line: #2f353d; --accent: #58a6ff; --theirs: #d29922 }
  }
  text { font: 13px -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; fill: var(--ink) }
  .paper { fill: var(--paper) } .band { fill: var(--accent); opacity: 0.1 }
  .title { font-size: 15px; font-weight: 600 } .metric { font-weight: 600; text-anchor: middle }
  .small { font-size: 12px; fill: var(--muted) } .group { font-size: 11.5px; font-weight: 600; fill: var(--muted) }
  .tick { font-size: 11.5px; fill: var(--muted); text-anchor: middle }
  .label, .value { text-anchor: end } .value { font-variant-numeric: tabular-nums }
  .grid { stroke: var(--line) } .axis { stroke: var(--muted) }
  .bar { stroke: var(--muted); stroke-width: 2; stroke-linecap: round } .dot { fill: var(--ink) }
  .served.bar { stroke: var(--accent); stroke-width: 3 } .served.dot { fill: var(--accent) }
  .served.label, .served.value { font-weight: 700; fill: var(--accent) }
  .theirs.value, .theirs.label { fill: var(--theirs) } .theirs.mark { fill: var(--paper); stroke: var(--theirs); stroke-width: 2 }
  .theirs.rule { stroke: var(--theirs); stroke-dasharray: 2 4; opacity: 0.75 }
"""


@cache
def read_metrics(file: str) -> list[dict[str, Any]]:
    """Return the metrics of a result file."""
    return json.loads((RESULTS / file).read_text())["metrics"]


def measured(row: Row, name: str) -> tuple[float, float, float]:
    """Return a metric of a system, and where its interval starts and ends."""
    return next(
        (found["value"], found["low"], found["high"])
        for found in read_metrics(row.file)
        if (found["system"], found["split"], found["name"], found["k"]) == (row.system, SPLIT, name, CUTOFF)
        and found.get("slice", "all") == "all"
    )


def number(value: float, digits: int = 3) -> str:
    """Write a rate as papers do: without the zero before its point."""
    return f"{value:.{digits}f}".removeprefix("0") if value else "0"


def text(x: float, y: float, kind: str, words: str) -> str:
    """Return a line of text."""
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(words)}</text>'


def axes(panel: Panel, bottom: int) -> Iterator[str]:
    """Draw a panel's title, its grid and the numbers below it."""
    yield text(panel.left + PANEL_WIDTH / 2, TOP - 10, "metric", panel.title)
    for i in range(round(panel.largest / panel.step) + 1):
        x = panel.x(i * panel.step)
        yield f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{bottom}" class="{"grid" if i else "axis"}"/>'
        yield text(x, bottom + 17, "tick", number(i * panel.step, 2))


def system(row: Row, y: int) -> Iterator[str]:
    """Draw a system: its name, and in each panel its interval, its dot and its value."""
    served = " served" if row.system == SERVED else ""
    if served:
        yield f'<rect x="12" y="{y - ROW // 2}" width="{WIDTH - 24}" height="{ROW}" rx="5" class="band"/>'
    yield text(PANELS[0].left - 16, y + 4.5, f"label{served}", row.label)
    for panel in PANELS:
        value, low, high = measured(row, panel.name)
        yield f'<line x1="{panel.x(low)}" y1="{y}" x2="{panel.x(high)}" y2="{y}" class="bar{served}"/>'
        yield f'<circle cx="{panel.x(value)}" cy="{y}" r="{6 if served else 4.5}" class="dot{served}"/>'
        yield text(panel.left + PANEL_WIDTH + VALUE_GAP, y + 4.5, f"value{served}", number(value))


def published(name: str, y: int) -> Iterator[str]:
    """Draw what others have published: a hollow mark without an interval, and a line up to our systems."""
    yield text(PANELS[0].left - 16, y + 4.5, "label theirs", name)
    for panel in PANELS:
        value = dict(panel.published).get(name)
        shown = "–" if value is None else number(value)
        yield text(panel.left + PANEL_WIDTH + VALUE_GAP, y + 4.5, "value theirs", shown)
        if value is not None:
            x = panel.x(value)
            yield f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{y}" class="rule theirs"/>'
            yield f'<path d="M{x} {y - 5.5}l5.5 5.5l-5.5 5.5l-5.5 -5.5z" class="mark theirs"/>'


def systems() -> str:
    """Return the figure of all systems as SVG."""
    marks: list[str] = []
    theirs: list[str] = []
    y = TOP
    for group, rows in GROUPS:
        marks.append(text(24, y + HEADING / 2 + 5, "group", group))
        y += HEADING
        for row in rows:
            marks += system(row, y + ROW // 2)
            y += ROW
    theirs.append(text(24, y + HEADING / 2 + 5, "group", "Published by others"))
    y += HEADING
    for name in dict.fromkeys(name for panel in PANELS for name, _ in panel.published):
        theirs += published(name, y + ROW // 2)
        y += ROW
    bottom = y + 6
    height = bottom + 62
    notes = (
        "Dots: one run, seed 0. Bars: 95 % bootstrap intervals, users resampled. Every system ranks the whole catalogue.",
        "Diamonds: what other authors report for this data set, without intervals.",
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>NDCG@10 and HR@10 of each system on Amazon Industrial and Scientific</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" rx="6" class="paper"/>',
        text(24, 32, "title", "Amazon Industrial and Scientific, test split"),
        *(line for panel in PANELS for line in axes(panel, bottom)),
        *theirs,
        *marks,
        *(text(24, bottom + 40 + 16 * i, "small", note) for i, note in enumerate(notes)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    SYSTEMS.write_text(systems())
