"""Bars are drawn on a terminal alone, one per stage, and are gone when their stage ends."""

import io

from rich.console import Console

from jobs.runtime.progress import ProgressBars


def _bars(terminal: bool) -> tuple[ProgressBars, io.StringIO]:
    drawn = io.StringIO()
    return ProgressBars(Console(file=drawn, force_terminal=terminal, width=100, no_color=True)), drawn


def test_a_terminal_shows_a_bar_for_each_stage_and_for_each_part_of_it():
    bars, drawn = _bars(terminal=True)
    bars.show("pipeline", 3, 12)
    bars.show("interest_responses", 40, 200, "qwen")
    bars.show("interest_responses", 10, 200, "[red]gpt")
    bars.close()
    shown = drawn.getvalue()
    assert "pipeline" in shown and "3/12" in shown
    assert "interest_responses qwen" in shown and "40/200" in shown
    assert "interest_responses [red]gpt" in shown and "10/200" in shown


def test_a_bar_ends_with_its_stage_and_others_stay():
    bars, drawn = _bars(terminal=True)
    bars.show("pipeline", 1, 2)
    bars.show("ranker", 1, 8)
    bars.show("ranker", 2, 9, "part")
    bars.end("ranker")
    drawn.truncate(0)
    bars.show("pipeline", 2, 2)
    bars.close()
    assert "pipeline" in drawn.getvalue() and "2/2" in drawn.getvalue()
    assert "ranker" not in drawn.getvalue()
    bars.show("ranker", 1, 8)
    assert "ranker" in drawn.getvalue()
    bars.close()


def test_a_file_or_a_pipe_gets_no_bar():
    bars, drawn = _bars(terminal=False)
    bars.show("pipeline", 3, 12)
    bars.end("pipeline")
    bars.close()
    assert drawn.getvalue() == ""
