"""Bars are drawn on a terminal alone, one per stage, and are gone when their stage ends."""

import io

from rich.console import Console

from jobs.runtime.progress import ProgressBars
from tests.patience import wait_until


def _bars(terminal: bool) -> tuple[ProgressBars, io.StringIO]:
    drawn = io.StringIO()
    return ProgressBars(Console(file=drawn, force_terminal=terminal, width=160, no_color=True)), drawn


def test_a_terminal_shows_a_bar_for_each_stage_and_for_each_part_of_it():
    bars, drawn = _bars(terminal=True)
    bars.show("pipeline", 3, 12)
    bars.show("interest_responses", 40, 200, "qwen")
    bars.show("interest_responses", 10, 200, "[red]gpt")
    wanted = ("pipeline", "3/12", "interest_responses qwen", "40/200", "interest_responses [red]gpt", "10/200")
    wait_until(lambda: all(text in drawn.getvalue() for text in wanted), drawn.getvalue)
    bars.close()


def test_a_bar_ends_with_its_stage_and_others_stay():
    bars, drawn = _bars(terminal=True)
    bars.show("pipeline", 1, 2)
    bars.show("ranker", 1, 8)
    bars.show("ranker", 2, 9, "part")
    bars.end("ranker")
    drawn.seek(0)
    drawn.truncate()
    bars.show("pipeline", 2, 2)
    wait_until(lambda: "2/2" in drawn.getvalue(), drawn.getvalue)
    assert "pipeline" in drawn.getvalue() and "ranker" not in drawn.getvalue()
    bars.show("ranker", 3, 8)
    wait_until(lambda: "3/8" in drawn.getvalue(), drawn.getvalue)
    bars.close()


def test_a_file_or_a_pipe_gets_no_bar():
    bars, drawn = _bars(terminal=False)
    bars.show("pipeline", 3, 12)
    bars.end("pipeline")
    bars.close()
    assert drawn.getvalue() == ""
