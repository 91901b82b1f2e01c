"""Progress bars of running stages, at the bottom of a terminal; elsewhere the lines that jobs print are all there is."""

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressBars:
    """One bar per stage, drawn below the lines that are printed meanwhile."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._drawn: Progress | None = None
        self._bars: dict[str, TaskID] = {}

    def show(self, stage: str, done: float, total: float, part: str = "") -> None:
        """Draw how far a stage is, or a named part of it, in any unit; without a terminal nothing is drawn."""
        if not self.console.is_terminal:
            return
        if self._drawn is None:
            counted, times = MofNCompleteColumn(), (TimeElapsedColumn(), TimeRemainingColumn())
            self._drawn = Progress(TextColumn("{task.description}"), BarColumn(), counted, *times, console=self.console)
            self._drawn.start()
        name = f"{stage} {part}".strip()
        if name not in self._bars:
            self._bars[name] = self._drawn.add_task(escape(name), total=total)
        self._drawn.update(self._bars[name], completed=done, total=total)

    def end(self, stage: str) -> None:
        """Take the bars of a stage away."""
        for name in [name for name in self._bars if name == stage or name.startswith(f"{stage} ")]:
            bar = self._bars.pop(name)
            if self._drawn is not None:
                self._drawn.remove_task(bar)

    def close(self) -> None:
        """Take all bars away."""
        if self._drawn is not None:
            for bar in self._bars.values():
                self._drawn.remove_task(bar)
            self._drawn.stop()
        self._drawn, self._bars = None, {}


BARS = ProgressBars()
"""The bars of this process."""
