"""Says what a run is doing: a bar on a terminal, a line now and then anywhere else."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
)
from rich.table import Column

BAR_WIDTH = 100  # columns from which on there is room for a bar beside the numbers
PLAIN_WIDTH = 110  # columns where there is no terminal to ask
SECONDS_BETWEEN_LINES = 5.0


def make_console() -> Console:
    """A console on stdout whose lines do not break early in a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


class Pace:
    """Seconds a step, between two ticks of the same run.

    What comes before a run's first tick, such as its compilation, is left out.
    """

    def __init__(self):
        self._seconds, self._steps = 0.0, 0
        self._last: tuple[int, float] | None = None

    def restart(self) -> None:
        """A run begins, or something else than steps took time."""
        self._last = None

    def tick(self, step: int, now: float) -> None:
        """``step`` steps of the run are done."""
        if self._last is not None:
            self._steps += step - self._last[0]
            self._seconds += now - self._last[1]
        self._last = step, now

    def seconds(self, steps: int) -> float | None:
        """What ``steps`` more take; None as long as that cannot be known."""
        return self._seconds / self._steps * steps if self._steps > 0 else None


class Reporter:
    """Progress over the `total` steps of all runs of an experiment; use it as a context manager.

    A run that goes on where it was stopped has `done` steps behind it.
    """

    def __init__(self, total: int, console: Console, done: int = 0):
        self._total = total
        self._before = 0  # steps of the runs finished before
        self._console = console
        self._last_line = time.monotonic()
        self._pace = Pace()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            *([BarColumn()] if console.width >= BAR_WIDTH else []),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("steps  {task.fields[numbers]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=done, numbers="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def say(self, doing: str) -> None:
        """Announces work that takes a while without steps to count, such as a compilation."""
        self._pace.restart()
        self._bar.update(self._task, description=doing, numbers="")
        self._print(doing)

    def show(self, doing: str, step: int, loss: float | None, accuracy: float | None) -> None:
        """Tells how far the run `doing` is, its training loss and its test accuracy, if known.

        Called at step 0, when all is compiled, it knows from the next call on what time is left.
        """
        done = self._before + step
        self._pace.tick(done, time.monotonic())
        known = [] if loss is None else [f"loss {loss:.3f}"]
        known += [] if accuracy is None else [f"accuracy {accuracy:.1%}"]
        numbers = "  ".join(known + self._left(done))
        self._bar.update(self._task, completed=done, description=doing, numbers=numbers)
        if time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES or done == self._total:
            self._print(f"{doing}: {done}/{self._total} steps  {numbers}".rstrip())

    def finish(self, steps: int) -> None:
        """Ends a run of `steps` steps; the next one counts on from there."""
        self._before += steps

    def _left(self, done: int) -> list[str]:
        seconds = self._pace.seconds(self._total - done)
        return [] if seconds is None or seconds <= 1 else [f"about {seconds:.0f} s left"]

    def _print(self, line: str) -> None:
        """A line where there is no bar."""
        if not self._console.is_terminal:
            self._last_line = time.monotonic()
            self._console.print(line, markup=False)
            self._console.file.flush()
