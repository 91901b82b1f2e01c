"""Draw the pages' pictures: one SVG per stage of what its jobs read and make, and one of the whole pipeline.

`python docs/drawings.py` writes `docs/images/`. `STAGES` is the only source of what is drawn, and a test compares it with the
jobs. Boxes have their own background, so the drawings are read on a light page and on a dark one alike.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

IMAGES = Path(__file__).parent / "images"

Kind = Literal["table", "model", "job"]


class Part(NamedTuple):
    """Something that a job reads or makes: an artifact by its name, or a pretrained model by the key that names it."""

    name: str
    when: str = ""
    """When it is there; empty for always."""


class Job(NamedTuple):
    """A job, as it is drawn."""

    name: str
    reads: tuple[Part, ...]
    makes: tuple[Part, ...]
    models: tuple[Part, ...]


def drawn_job(name: str, reads: tuple[str, ...], makes: tuple[str, ...], models: tuple[str, ...] = ()) -> Job:
    """Return a job whose parts are given by their names, some with `: ` and a condition behind."""

    def parts(names: tuple[str, ...]) -> tuple[Part, ...]:
        return tuple(Part(*each.split(": ")) for each in names)

    return Job(name, parts(reads), parts(makes), parts(models))


class Stage(NamedTuple):
    """A stage with its jobs, in the order in which they run."""

    title: str
    jobs: tuple[Job, ...]


JUDGE, USERS, WORDS = "where a judge labels", "where users are mined", 'backbone = "hf"'
RANKED, TOWERS, CANONICAL = "where lists are ranked", "with towers.enabled", "for the reward canonical"

STAGES = {
    "data": Stage("Data", (drawn_job("prepare_data", (), ("items", "interactions", "histories")),)),
    "interests": Stage(
        "Interests",
        (
            drawn_job(
                "mine_interests",
                ("items", f"histories: {USERS}"),
                ("interest_responses", "interests"),
                ("interests.miners: where vLLM runs one", "interests.encoder"),
            ),
        ),
    ),
    "labels": Stage(
        "Labels",
        (
            drawn_job("train_classifier", ("items", "interests"), ("classifier",), ("classifier.base",)),
            drawn_job(
                "label_interests",
                ("items", "interests", "classifier: where it labels", "histories: of users or behaviour"),
                ("interest_labels", f"interest_verdicts: {JUDGE}"),
                ("classifier.base: where it labels", "labels.judge: where vLLM runs it"),
            ),
        ),
    ),
    "item_vectors": Stage(
        "Item vectors",
        (
            drawn_job(
                "embed_items",
                ("items", "interests", "interest_labels"),
                ("item_embeddings",),
                ("embeddings.encoder", "embeddings.image_encoder: where one is named"),
            ),
        ),
    ),
    "semantic_ids": Stage(
        "Semantic IDs",
        (
            drawn_job("build_sids", ("item_embeddings", "histories"), ("item_sids", "quantiser")),
            drawn_job("tune_codebooks", ("item_embeddings", "histories"), ("codebook_sweep",)),
        ),
    ),
    "policy": Stage(
        "Policy",
        (
            drawn_job(
                "train_sft",
                ("histories", "item_sids", f"items: {WORDS}", f"interest_labels: {WORDS}"),
                ("policy_examples", "policy_sft"),
                (f"policy.base: {WORDS}",),
            ),
        ),
    ),
    "grpo": Stage(
        "GRPO",
        (
            drawn_job(
                "train_grpo",
                (
                    "policy_sft",
                    "histories",
                    "item_sids",
                    "interest_labels",
                    "item_embeddings",
                    f"items: {CANONICAL}",
                    f"ranking_index: {CANONICAL}",
                ),
                ("policy_grpo",),
            ),
        ),
    ),
    "ranking": Stage(
        "Ranking",
        (
            drawn_job(
                "build_neighbours",
                ("items", "histories", "interests", "interest_labels", "item_embeddings"),
                ("canonical_interests", "item_neighbours", "ranking_index"),
                ("embeddings.encoder",),
            ),
            drawn_job("train_ranker", ("items", "histories", "ranking_index"), ("ranking_examples", "ranker")),
        ),
    ),
    "towers": Stage(
        "Towers",
        (drawn_job("train_towers", ("items", "histories", "item_embeddings"), ("towers",)),),
    ),
    "decoding": Stage(
        "Decoding",
        (
            drawn_job(
                "recommend",
                (
                    "histories",
                    "item_sids",
                    "interest_labels",
                    "policy_sft",
                    "policy_grpo: after GRPO",
                    f"canonical_interests: {RANKED}",
                    "items: where ranked, or with towers",
                    f"ranking_index: {RANKED}",
                    f"ranker: {RANKED}",
                    f"item_embeddings: {TOWERS}",
                    f"towers: {TOWERS}",
                ),
                ("recommendations",),
            ),
        ),
    ),
    "evaluation": Stage(
        "Evaluation",
        (
            drawn_job(
                "evaluate",
                ("items", "histories", f"interest_labels: {RANKED}", f"canonical_interests: {RANKED}", "recommendations"),
                ("metrics", "report"),
            ),
            drawn_job(
                "compare_runs",
                ("histories", f"interest_labels: {RANKED}", f"canonical_interests: {RANKED}", "recommendations"),
                ("seed_comparison",),
            ),
        ),
    ),
}

TRAINED = ("classifier", "quantiser", "policy_sft", "policy_grpo", "ranker", "towers")
"""Artifacts that are models; all others are tables or files of numbers."""
APART = ("tune_codebooks", "compare_runs")
"""Jobs that are no part of the pipeline."""

GRID = {
    "data": (0, 0),
    "interests": (1, 0),
    "labels": (2, 0),
    "item_vectors": (3, 0),
    "semantic_ids": (0, 1),
    "policy": (1, 1),
    "grpo": (2, 1),
    "ranking": (0, 2),
    "towers": (0, 3),
    "decoding": (3, 1),
    "evaluation": (3, 3),
}
"""Column and row of each stage in the drawing of the pipeline."""
ROWS_OF = {"decoding": 2}
"""Rows that a stage takes where it is more than one."""
CHAINS = (
    "data interests labels item_vectors semantic_ids policy grpo decoding evaluation",
    "item_vectors ranking decoding",
    "item_vectors towers decoding",
)
EDGES = tuple(edge for chain in CHAINS for edge in pairwise(chain.split()))
"""What a stage waits for, as far as nothing between the two says it already."""

COLOURS: dict[Kind, tuple[str, str, str]] = {
    "table": ("#e3effb", "#5b93cc", "#173a5e"),
    "model": ("#ece6f8", "#8f75c4", "#38235f"),
    "job": ("#fdebc3", "#c9922a", "#4a3208"),
}
"""Background, border and text of a box."""
LINE = "#7d8590"
MONO, SANS = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace", "system-ui, Segoe UI, Helvetica, Arial, sans-serif"
WIDTH, MARGIN = 720, 8
FONT, SMALL = 12, 10.5
LETTER_WIDTH = 0.61
"""Width of a letter of the fixed-width font, as a share of its size; a little more than it is."""


class Box(NamedTuple):
    """A rectangle with lines of text."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        """Height of its middle."""
        return self.y + self.height / 2

    @property
    def right(self) -> float:
        """Right edge."""
        return self.x + self.width


class Line(NamedTuple):
    """One line of text in a box."""

    text: str
    size: float = FONT
    font: str = MONO
    bold: bool = False


def draw_stage(stage: Stage) -> str:
    """Return the drawing of a stage: a band for each job, with what it reads on its left and what it makes on its right."""
    found, top = list[str](), float(MARGIN)
    for job in stage.jobs:
        parts, bottom = _draw_job(job, top)
        found += parts
        top = bottom + 26
    read = "; ".join(f"{job.name} reads {_names(job.reads + job.models)} and makes {_names(job.makes)}" for job in stage.jobs)
    return _svg(f"{stage.title}: {read}", found, top - 26 + MARGIN)


def draw_pipeline() -> str:
    """Return the drawing of all stages and of what each waits for."""
    boxes = {name: _grid_box(name) for name in GRID}
    found = [_path(_route(boxes[left], boxes[right])) for left, right in EDGES]
    for name, box in boxes.items():
        lines = [Line(STAGES[name].title, 14, SANS, bold=True)]
        lines += [Line(job.name) for job in STAGES[name].jobs if job.name not in APART]
        lines += [Line(made, SMALL) for made in read_later(name)]
        found.append(_box(box, "job", lines))
    order = ", ".join(f"{left} to {right}" for left, right in EDGES)
    return _svg(f"The stages of a run: {order}", found, max(box.y + box.height for box in boxes.values()) + MARGIN)


def read_later(stage: str) -> list[str]:
    """Return what a stage makes for others; all that it makes for a reader where no stage comes behind it."""
    made = [part.name for job in STAGES[stage].jobs for part in job.makes]
    others = {part.name for name, other in STAGES.items() if name != stage for job in other.jobs for part in job.reads}
    return [name for name in made if name in others] or [part.name for part in STAGES[stage].jobs[0].makes]


def drawings() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each SVG."""
    yield "pipeline.svg", draw_pipeline()
    for name, stage in STAGES.items():
        if name not in ("data", "towers"):  # no page is theirs
            yield f"stage_{name}.svg", draw_stage(stage)


def _names(parts: tuple[Part, ...]) -> str:
    return ", ".join(part.name + (f" ({part.when})" if part.when else "") for part in parts)


def _draw_job(job: Job, top: float) -> tuple[list[str], float]:
    """Return the elements of a job's band and where it ends."""
    left, right = _stack(job.reads + job.models, 224), _stack(job.makes, 180)
    height = max(_height(left), _height(right), 44)
    left = _moved(left, MARGIN, top + (height - _height(left)) / 2)
    right = _moved(right, WIDTH - MARGIN - 180, top + (height - _height(right)) / 2)
    middle = Box((left[0].right + right[0].x) / 2 - 78, top + height / 2 - 22, 156, 44)
    found = [_path(_curve(box, middle)) for box in left] + [_path(_curve(middle, box)) for box in right]
    found.append(_box(middle, "job", [Line(job.name, bold=True)]))
    for box, part in zip([*left, *right], job.reads + job.models + job.makes, strict=True):
        kind: Kind = "model" if part.name in TRAINED or part in job.models else "table"
        found.append(_box(box, kind, [Line(part.name), *([Line(part.when, SMALL, SANS)] if part.when else [])], bool(part.when)))
    return found, top + height


def _stack(parts: tuple[Part, ...], width: float) -> list[Box]:
    found, y = list[Box](), 0.0
    for part in parts:
        found.append(Box(0, y, width, 40 if part.when else 28))
        y += found[-1].height + 8
    return found


def _height(boxes: list[Box]) -> float:
    return boxes[-1].y + boxes[-1].height


def _moved(boxes: list[Box], x: float, y: float) -> list[Box]:
    return [box._replace(x=box.x + x, y=box.y + y) for box in boxes]


def _grid_box(name: str) -> Box:
    (column, row), rows = GRID[name], ROWS_OF.get(name, 1)
    tops, heights = (MARGIN, 132, 234, 368), (90, 78, 110, 78)
    height = tops[row + rows - 1] + heights[row + rows - 1] - tops[row]
    return Box(30 + column * 173, tops[row], 163 - 18, height)


def _route(left: Box, right: Box) -> str:
    """Return the way of an arrow between two boxes of the pipeline, in straight pieces."""
    if left.x == right.x:
        return f"M{left.x + left.width / 2:g} {left.y + left.height:g} V{right.y - 2:g}"
    if left.x < right.x and right.y <= left.middle <= right.y + right.height:
        return f"M{left.right:g} {left.middle:g} H{right.x - 2:g}"
    if left.x < right.x:  # from below, up just before the box
        return f"M{left.right:g} {left.middle:g} H{right.x - 14:g} V{right.y + right.height - 18:g} H{right.x - 2:g}"
    lane, bus = right.x - 18, left.y + left.height + 18  # back to the first column, by the lane on its left
    return f"M{left.x + left.width / 2:g} {left.y + left.height:g} V{bus:g} H{lane:g} V{right.middle:g} H{right.x - 2:g}"


def _curve(left: Box, right: Box) -> str:
    start, end = left.right, right.x - 2
    bend = (end - start) / 2
    return (
        f"M{start:g} {left.middle:g} C{start + bend:g} {left.middle:g} {end - bend:g} {right.middle:g} {end:g} {right.middle:g}"
    )


def _path(way: str) -> str:
    return f'<path d="{way}" fill="none" stroke="{LINE}" stroke-width="1.5" marker-end="url(#arrow)"/>'


def _box(box: Box, kind: Kind, lines: list[Line], dashed: bool = False) -> str:
    """Return a rectangle with its lines of text in the middle."""
    for line in lines:
        assert len(line.text) * line.size * LETTER_WIDTH + 8 <= box.width, f"{line.text!r} is wider than its box"
    fill, border, ink = COLOURS[kind]
    dashes = ' stroke-dasharray="5 3"' if dashed else ""
    radius = box.height / 2 if kind == "model" else 4
    found = [
        f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}" rx="{radius:g}" fill="{fill}" '
        f'stroke="{border}" stroke-width="1.2"{dashes}/>'
    ]
    y = box.middle - sum(line.size * 1.35 for line in lines) / 2
    for line in lines:
        weight = ' font-weight="600"' if line.bold else ""
        found.append(
            f'<text x="{box.x + box.width / 2:g}" y="{y + line.size:g}" font-family="{line.font}" font-size="{line.size:g}" '
            f'fill="{ink}" text-anchor="middle"{weight}>{_escaped(line.text)}</text>'
        )
        y += line.size * 1.35
    return "\n".join(found)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _svg(title: str, elements: list[str], height: float) -> str:
    arrow = (
        '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8Z" fill="{LINE}"/></marker>'
    )
    size = f'viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join([head, f"<title>{_escaped(title)}</title>", f"<defs>{arrow}</defs>", *elements, "</svg>", ""])


def main() -> None:
    """Write all drawings."""
    IMAGES.mkdir(exist_ok=True)
    for name, text in drawings():
        (IMAGES / name).write_text(text)


if __name__ == "__main__":
    main()
