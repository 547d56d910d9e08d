"""Status and history for a terminal, and plain lines for everything else."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape as unmarked

from ..printable import printable
from . import columns
from .columns import Line
from .history import Switch
from .status import CHANGING, DOWN, DRIFT, OK, STOPPED, UNPROVEN, Row, severity, word

COLOURS = {OK: "green", CHANGING: "cyan", DRIFT: "yellow", DOWN: "red", STOPPED: "red", UNPROVEN: "red"}
OUTCOMES = {
    "committed": "green",
    "calibrated": "green",
    "tried": "cyan",
    "deferred": "yellow",
    "under way": "cyan",
}
# Not a terminal: never fold a row, so that grep and cut see it whole.
UNFOLDED = 2000
# In the order in which they are left out, the last one first, where a screen is too narrow for all.
STATUS = (
    "state",
    "host",
    "service",
    "release",
    "since (UTC)",
    "last switch",
    "vllm",
    "model",
    "flags",
    "kernel",
)
HISTORY = ("outcome", "began (UTC)", "host", "service", "to", "from", "took", "who", "what", "verdict")
# Services with equal cells here are one line where there are too many for the screen.
ALIKE = ("service", "release", "vllm", "model", "flags", "kernel")


def console() -> Console:
    """Standard output: colours and folding on a terminal only."""
    return Console() if sys.stdout.isatty() else Console(width=UNFOLDED, no_color=True, highlight=False)


def escape(text: object) -> str:
    """Text of a host as a cell, without markup or control characters."""
    return unmarked(printable(text))


def show_status(screen: Console, rows: Sequence[Row], *, wide: bool = False) -> None:
    """One line a service, the worst first; below it its reasons.

    Where that is more than the screen has lines, those that are well and alike are one line together.

    + wide: every column and every service, however long the lines get
    """
    lines = [_status_line(row) for row in sorted(rows, key=severity)]
    if screen.is_terminal and not wide:
        lines = _on_one_screen(lines, screen.height)
    names = _names(STATUS, lines, screen, wide)
    columns.show(screen, names, lines, whole=wide)
    if screen.is_terminal:
        screen.print(_summary(rows, STATUS[len(names) :]), highlight=False, style="bold")


def _names(names: Sequence[str], lines: Sequence[Line], screen: Console, wide: bool) -> list[str]:
    """The columns to show: not on a terminal, too, all of them."""
    return list(names) if wide or not screen.is_terminal else columns.fitting(names, lines, screen.width)


def _status_line(row: Row) -> Line:
    cells = (word(row), row.host, row.service, row.release or "", short_time(row.since), row.verdict)
    more = (row.runtime, row.model, row.flags, row.kernel)
    said = tuple(reasons_of(row))
    return Line(dict(zip(STATUS, (*cells, *more), strict=True)), COLOURS[word(row)], said)


def _on_one_screen(lines: list[Line], height: int) -> list[Line]:
    if len(lines) + 3 <= height:  # with the heading, the summary and the prompt
        return lines
    alike: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        if line.cells["state"] == OK and not line.reasons:
            alike.setdefault(tuple(line.cells[name] for name in ALIKE), []).append(line)
    together = [_together(same) for same in alike.values()]
    return [line for line in lines if line.cells["state"] != OK or line.reasons] + together


def _together(same: list[Line]) -> Line:
    if len(same) == 1:
        return same[0]
    cells = {name: _common(line.cells[name] for line in same) for name in STATUS}
    hosts = ", ".join(line.cells["host"] for line in same)
    return Line({**cells, "host": f"{len(same)} hosts"}, same[0].colour, (hosts,))


def _common(values: Iterable[str]) -> str:
    found = set(values)
    return found.pop() if len(found) == 1 else "various"


def _summary(rows: Sequence[Row], left_out: Sequence[str]) -> str:
    counts = Counter(word(row) for row in sorted(rows, key=severity))
    found = ", ".join(f"{count} {state}" for state, count in counts.items())
    hint = f" (--wide shows also: {', '.join(left_out)})" if left_out else ""
    return f"{len({row.host for row in rows})} hosts: {found}{hint}"


def reasons_of(row: Row) -> list[str]:
    """The notes on a service, beside its state."""
    until = f"{short_time(row.asleep_until)} UTC"
    asleep = f"{row.asleep} sleeps beside it until {until}: rollback.py wakes it" if row.asleep else ""
    return list(filter(None, (row.problem, row.switching, *row.drift, asleep, row.note)))


def show_history(screen: Console, switches: Sequence[Switch], *, wide: bool = False) -> None:
    """One line a switch, oldest first; below it the reasons, and the cells that do not fit in columns."""
    lines = [_history_line(item) for item in switches]
    names = _names(HISTORY, lines, screen, wide)
    left_out = HISTORY[len(names) :]
    columns.show(screen, names, [_with_rest(line, left_out) for line in lines], whole=wide)


def _history_line(item: Switch) -> Line:
    took = "" if item.took_s is None else f"{item.took_s:.0f} s"
    cells = (
        item.outcome,
        short_time(item.began),
        item.host,
        item.service,
        item.new,
        item.old or "nothing",
        took,
    )
    more = (item.operator, item.purpose, item.verdict or "")
    why = why_of(item)
    return Line(
        dict(zip(HISTORY, (*cells, *more), strict=True)),
        OUTCOMES.get(item.outcome, "red"),
        (why,) if why else (),
    )


def _with_rest(line: Line, left_out: Sequence[str]) -> Line:
    rest = ", ".join(f"{name} {line.cells[name]}" for name in left_out if line.cells[name])
    return Line(line.cells, line.colour, (*line.reasons, *filter(None, [rest])))


def why_of(item: Switch) -> str:
    """The host's reason for the outcome, the operator's for the switch, and the overrides."""
    parts = [item.reason]
    parts.append(f"operator: {item.why}" if item.why else "")
    parts.append(f"overrides: {', '.join(item.overrides)}" if item.overrides else "")
    return "; ".join(part for part in parts if part)


def short_time(text: str) -> str:
    """`2026-11-21 02:13` of an ISO time; anything else as it is."""
    is_iso = text[4:5] == "-" and text[10:11] == "T"
    return f"{text[:10]} {text[11:16]}" if is_iso else text
