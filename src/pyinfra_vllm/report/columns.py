"""Lays out rows for a terminal of any width: the state first, reasons on lines of their own, nothing cropped.

Columns that do not fit are left out whole, from the last one on; whoever prints says how to see them. Not on
a terminal, a row is one line with its reasons at the end, so that grep and cut see it whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from ..printable import printable

GAP, INDENT = 2, 4
UNBROKEN = 1 << 20
WIDEST = 24  # of a column on a terminal: behind a longer cell the row goes on below


@dataclass(frozen=True)
class Line:
    """One row: the cells by the names of their columns, its state's colour, and its reasons."""

    cells: Mapping[str, str]
    colour: str
    reasons: tuple[str, ...] = ()


def fitting(names: Sequence[str], lines: Sequence[Line], width: int) -> list[str]:
    """The first columns that fit side by side; at least the first three."""
    widths = _widths(names, lines, WIDEST)
    kept = list(names)
    while len(kept) > 3 and sum(widths[name] + GAP for name in kept) - GAP > width:
        kept.pop()
    return kept


def show(
    screen: Console, names: Sequence[str], lines: Sequence[Line], *, heading: bool = True, whole: bool = False
) -> None:
    """Print the rows with these columns. Text of hosts is printed and never interpreted.

    + whole: never break a row, however long it gets
    """
    widths = _widths(names, lines, UNBROKEN if whole or not screen.is_terminal else WIDEST)
    if heading:
        _print(screen, Text(_row({name: name for name in names}, names, widths), style="bold"))
    for line in lines:
        row = _row(line.cells, names, widths)
        reasons = [printable(reason) for reason in line.reasons]
        if not screen.is_terminal:
            row = "  ".join(filter(None, (row, "; ".join(reasons))))
        text = Text(row)
        text.stylize(line.colour, 0, len(_cell(line.cells, names[0])))
        _print(screen, text)
        for reason in reasons if screen.is_terminal else ():
            screen.print(Padding(Text(reason, overflow="fold"), (0, 0, 0, INDENT)), highlight=False)


def _print(screen: Console, text: Text) -> None:
    text.rstrip()
    screen.print(text, soft_wrap=True, highlight=False)


def _row(cells: Mapping[str, str], names: Sequence[str], widths: Mapping[str, int]) -> str:
    """The cells under their columns; behind one that is too long for its column, the rest one line below."""
    done, row, column = [], "", 0
    for name in names:
        word = _cell(cells, name)
        if cell_len(row) > column and word:
            done.append(row.rstrip())
            row = ""
        row += " " * (column - cell_len(row)) + word
        column += widths[name] + GAP
    return "\n".join([*done, row.rstrip()])


def _cell(cells: Mapping[str, str], name: str) -> str:
    return printable(cells.get(name, ""))


def _widths(names: Sequence[str], lines: Sequence[Line], widest: int) -> dict[str, int]:
    """As wide as the widest cell that is no wider than `widest`."""
    found = {name: [cell_len(_cell(line.cells, name)) for line in lines] for name in names}
    return {name: max([cell_len(name), *(size for size in found[name] if size <= widest)]) for name in names}
