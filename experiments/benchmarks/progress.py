"""Says how far a benchmark is: a bar on a terminal, a line for each part anywhere else."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


class Progress:
    """Tells a console what is being measured; without a console it is silent."""

    def __init__(self, console: Console | None = None):
        self._console = console

    def say(self, doing: str) -> None:
        """One line about what comes next."""
        if self._console is not None:
            self._console.print(doing, markup=False)
            self._console.file.flush()

    def track(self, items: Iterable[T], total: int, doing: str) -> Iterator[T]:
        """Yields `items`, of which there are `total`."""
        if self._console is None or not self._console.is_terminal:
            self.say(doing)
            yield from items
        else:
            yield from track(
                items, doing, total, console=self._console, transient=True, update_period=0.5
            )
