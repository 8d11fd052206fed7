"""Tables that stay readable in a narrow terminal: columns side by side where they fit, else turned, else one line a field."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, OverflowMethod, RenderableType
from rich.table import Table
from rich.text import Text

_GAP = 2
"""Blanks between two columns."""

_TEXT_WIDTH = 14
"""Cells that a column of running text needs, at least."""

_HEADER_WIDTH = 14
"""Cells of a header that are not broken, at most."""

Cell = str | Text


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: Its header.
        right: Flush right, as numbers are.
        text: Running text, which may be broken into lines; anything else stays on one line.
        cut: Running text of which the beginning is enough: one line, the rest left out.
    """

    name: str = ""
    right: bool = False
    text: bool = False
    cut: bool = False

    def least(self, cells: Sequence[Cell]) -> int:
        """Cells that it needs to be readable."""
        header = min(max((cell_len(word) for word in self.name.split()), default=0), _HEADER_WIDTH)
        widest = max(map(_width, cells), default=0)
        return max(header, min(widest, _TEXT_WIDTH) if self.text or self.cut else widest)

    def full(self, cells: Sequence[Cell]) -> int:
        """Cells beyond which more are of no use."""
        return max(map(_width, (self.name, *cells)))


class Sheet:
    """Rows under columns, which rich prints.

    Args:
        columns: The columns, or names of plain ones.
        title: Stands above.
        header: Whether the columns' names are shown above them.
    """

    def __init__(self, *columns: Column | str, title: str | None = None, header: bool = True) -> None:
        self.columns = [Column(column) if isinstance(column, str) else column for column in columns]
        self.title, self._header = title, header
        self.rows: list[tuple[Cell, ...]] = []

    def add(self, *cells: Cell) -> None:
        """Append a row, one cell a column."""
        self.rows.append(tuple(cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        for sheet in (self, *self._turned()):
            if widths := sheet._widths(console, options.max_width):
                yield sheet._side_by_side(widths)
                return
        yield from self._one_below_another()

    def _turned(self) -> Iterator["Sheet"]:
        """The same with columns as rows, where all that it holds are numbers."""
        if self._header and all(column.right for column in self.columns):
            turned = Sheet(self.columns[0].name, *(Column(str(row[0]), right=True) for row in self.rows), title=self.title)
            for k, column in enumerate(self.columns[1:], start=1):
                turned.add(column.name, *(row[k] for row in self.rows))
            yield turned

    def _widths(self, console: Console, room: int) -> list[int]:
        """A width for each column, or nothing if they do not fit side by side."""
        by_column = [[_plainly(console, row[k]) for row in self.rows] for k in range(len(self.columns))]
        least = [column.least(cells) for column, cells in zip(self.columns, by_column, strict=True)]
        full = [column.full(cells) for column, cells in zip(self.columns, by_column, strict=True)]
        room -= _GAP * (len(self.columns) - 1)
        return _shared(least, full, [column.text or column.cut for column in self.columns], room) if sum(least) <= room else []

    def _side_by_side(self, widths: Sequence[int]) -> Table:
        table = _bare_table(title=self.title, show_header=self._header)
        for column, width in zip(self.columns, widths, strict=True):
            header = Text(column.name, overflow="fold", no_wrap=False)
            overflow: OverflowMethod = "ellipsis" if column.cut else "fold"
            table.add_column(header, width=width, justify="right" if column.right else "left", no_wrap=column.cut, overflow=overflow)
        for row in self.rows:
            table.add_row(*row)
        return table

    def _one_below_another(self) -> Iterator[RenderableType]:
        if self.title:
            yield Text(self.title, style="table.title")
        for number, row in enumerate(self.rows):
            fields = _bare_table(show_header=False)
            fields.add_column(style="table.header", overflow="fold")
            fields.add_column(overflow="fold")
            for column, cell in zip(self.columns, row, strict=True):
                if _width(cell):
                    fields.add_row(column.name, cell)
            yield from ("",) * bool(number)
            yield fields


def _bare_table(title: str | None = None, **options: Any) -> Table:
    return Table(title=title, title_justify="left", box=None, padding=(0, _GAP, 0, 0), pad_edge=False, **options)


def _plainly(console: Console, cell: Cell) -> Cell:
    """A cell as it will be shown: what an encoding lacks is wider when it is escaped."""
    return console.render_str(cell) if isinstance(cell, str) else cell


def _width(cell: Cell) -> int:
    return cell.cell_len if isinstance(cell, Text) else cell_len(cell)


def _shared(least: Sequence[int], full: Sequence[int], is_text: Sequence[bool], room: int) -> list[int]:
    """Widths within the room: first to what lacks little, headers and numbers, then to running texts, evenly."""
    widths = list(least)
    for _ in range(room - sum(least)):
        lacks = [(text, -lack if text else lack, k) for k, text in enumerate(is_text) if (lack := full[k] - widths[k]) > 0]
        if not lacks:
            break
        widths[min(lacks)[2]] += 1
    return widths
