"""Progress bars and spinners on standard error, drawn by rich."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Shows a person how far a run is.

    Args:
        console: Where to draw.
        enabled: Draw at all.
    """

    def __init__(self, console: Console, *, enabled: bool = True) -> None:
        self.console = console
        self._enabled = enabled

    @classmethod
    def silent(cls) -> "Progress":
        """One that draws nothing."""
        return cls(Console(stderr=True), enabled=False)

    @contextmanager
    def bar(self, description: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar over a number of edits, ``None`` if it is not known. Yields the function that moves the bar on by a number of edits."""
        columns = (
            TextColumn("{task.description:<11}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("edits"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self.console, disable=not self._enabled) as progress:
            task = progress.add_task(description, total=total)
            yield lambda n: progress.advance(task, n)

    @contextmanager
    def spinner(self, description: str) -> Iterator[None]:
        """A spinner for something of unknown length."""
        if not self._enabled or not self.console.is_terminal:
            yield
            return
        with self.console.status(description, spinner="line" if self.console.options.ascii_only else "dots"):
            yield
