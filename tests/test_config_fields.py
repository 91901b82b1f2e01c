"""`--help` and the documentation show every field of a config as it is."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from digr.config import Config
from digr.config.base import Section
from digr.config.fields import FieldRow, InnerTable, iter_fields, iter_inner_tables
from digr.config.interests import ExtractiveMiner, OpenAIJudge, OpenAIMiner, ReplayMiner, VllmJudge, VllmMiner
from digr.config.policy import RewardConfig, SftConfig
from digr.config.run import AblationConfig

ROWS = list(iter_fields(Config))
TABLES = list(iter_inner_tables(Config))


class Round(Section):
    """A tin."""

    kind: Literal["round"] = "round"
    """Its form."""
    radius: float = Field(2.5, gt=0, lt=9)
    """Half its width, cm."""


class Square(Section):
    """A box."""

    kind: Literal["square"] = "square"
    """Its form."""
    side: int = Field(ge=1, le=20_000)
    """Its width, cm."""


class Label(Section):
    """What is written on a box."""

    text: str = Field("none", min_length=1)
    """Its words,
    on one line."""
    size: Literal[1, 2, 3] = 2
    """Of the letters."""


class Shelf(Section):
    """Boxes."""

    boxes: tuple[Annotated[Round | Square, Field(discriminator="kind")], ...] = (Round(radius=3.0),)
    """On it."""
    spare: Annotated[Round | Square, Field(discriminator="kind")] | None = None
    """One more."""
    label: Label = Label(text="tea")
    inner: tuple[Label, ...] = ()
    """Labels inside."""
    weights: tuple[float, ...] = Field((0.5,), min_length=1, max_length=4)
    """Of the boxes, kg."""
    levels: tuple[tuple[int, ...] | Literal["auto"], ...] = ((1, 2), "auto")
    """Heights."""
    names: Mapping[str, str | tuple[str, ...]] = Field(default_factory=lambda: {"a.b": "x", "c": ("y", "z")})
    """Ours and theirs."""
    more: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """The rest."""
    further: dict[str, Any] = Field({})
    """Passed on."""
    code: str = Field("", pattern="^[A-Z]*$")
    """Its code."""
    limit: float | None = Field(None, ge=0)
    """Load, kg."""
    is_new: bool = True
    """Whether it is new."""


def test_a_row_says_type_default_limits_and_meaning_in_words():
    assert [tuple(row) for row in iter_fields(Shelf, "shelf")] == [
        (
            "shelf.boxes",
            'list of tables of kind "round" or "square"',
            '[{kind = "round", radius = 3.0}]',
            "",
            "On it.",
        ),
        ("shelf.spare", 'table of kind "round" or "square"', "unset", "", "One more."),
        ("shelf.label.text", "text", '"tea"', "not empty", "Its words, on one line."),
        ("shelf.label.size", "1, 2 or 3", "2", "", "Of the letters."),
        ("shelf.inner", "list of tables", "[]", "", "Labels inside."),
        ("shelf.weights", "list of numbers", "[0.5]", "1 to 4 entries", "Of the boxes, kg."),
        ("shelf.levels", 'list of (lists of whole numbers or "auto")', '[[1, 2], "auto"]', "", "Heights."),
        ("shelf.names", "table of texts or lists of texts", '{"a.b" = "x", c = ["y", "z"]}', "", "Ours and theirs."),
        ("shelf.more", "table of any values", "{}", "", "The rest."),
        ("shelf.further", "table of any values", "{}", "", "Passed on."),
        ("shelf.code", "text", '""', 'matches "^[A-Z]*$"', "Its code."),
        ("shelf.limit", "number", "unset", "at least 0", "Load, kg."),
        ("shelf.is_new", "true or false", "true", "", "Whether it is new."),
    ]


def test_the_fields_of_inner_tables_are_listed_by_kind():
    assert list(iter_inner_tables(Shelf)) == [
        InnerTable("boxes", True, "round", Round),
        InnerTable("boxes", True, "square", Square),
        InnerTable("spare", False, "round", Round),
        InnerTable("spare", False, "square", Square),
        InnerTable("inner", True, "", Label),
    ]
    assert list(iter_fields(Round))[1] == FieldRow("radius", "number", "2.5", "more than 0, less than 9", "Half its width, cm.")
    assert list(iter_fields(Square))[1] == FieldRow("side", "whole number", "required", "1 to 20_000", "Its width, cm.")


def test_sections_of_a_run_have_their_keys_as_an_override_names_them():
    keys = [row.key for row in ROWS]
    assert keys[:2] == ["run.dir", "run.seed"]
    assert {"sft.epochs", "grpo.reward.exact", "data.synthetic.num_items", "interests.encoder.max_tokens"} <= set(keys)
    assert "grpo.reward" not in keys and len(keys) == len(set(keys))
    assert next(iter_fields(SftConfig, "sft")) == FieldRow(
        "sft.epochs", "whole number", "25", "at least 1", "Passes over the examples."
    )
    assert next(iter_fields(RewardConfig, "grpo.reward")) in ROWS


def test_tables_of_a_run_are_its_miners_its_judge_and_its_ablations():
    assert [table[::3] for table in TABLES] == [
        ("interests.miners", VllmMiner),
        ("interests.miners", OpenAIMiner),
        ("interests.miners", ReplayMiner),
        ("interests.miners", ExtractiveMiner),
        ("labels.judge", VllmJudge),
        ("labels.judge", OpenAIJudge),
        ("ablations", AblationConfig),
    ]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_every_field_of_a_run_has_a_meaning(row):
    assert row.meaning.endswith((".", ")"))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table.key}-{table.kind}")
def test_every_field_of_an_inner_table_has_a_meaning(table):
    assert [row.key for row in iter_fields(table.model) if not row.meaning.endswith((".", ")"))] == []
