"""Tables for a terminal, and plain lines for everything else."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape as unmarked
from rich.table import Table

from ..printable import printable
from .history import Switch
from .status import CHANGING, DOWN, DRIFT, OK, Row

COLOURS = {OK: "green", CHANGING: "cyan", DRIFT: "yellow", DOWN: "red"}
OUTCOMES = {"committed": "green", "calibrated": "green", "deferred": "yellow", "under way": "cyan"}
# Not a terminal: never fold a row, so that grep and cut see it whole.
UNFOLDED = 2000


def console() -> Console:
    """Standard output: colours and folding on a terminal only."""
    return Console() if sys.stdout.isatty() else Console(width=UNFOLDED, no_color=True, highlight=False)


def escape(text: object) -> str:
    """A cell that shows what a host said, and obeys none of it."""
    return unmarked(printable(text))


def status_table(rows: Iterable[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (
        "host",
        "service",
        "release",
        "since (UTC)",
        "model",
        "vllm",
        "flags",
        "kernel",
        "last switch",
    ):
        table.add_column(name, no_wrap=name in ("host", "service", "release"))
    table.add_column("state", min_width=24)
    for row in rows:
        cells = (row.host, row.service, row.release or "", short_time(row.since), row.model)
        more = (row.runtime, row.flags, row.kernel, row.verdict)
        table.add_row(*map(escape, (*cells, *more)), f"[{COLOURS[row.state]}]{escape(state_of(row))}[/]")
    return table


def state_of(row: Row) -> str:
    """The last column: `ok`, or what to know about this service."""
    if row.problem:
        return f"down: {row.problem}"
    parts = [f"switching: {row.switching}"] if row.switching else []
    parts += row.drift
    if row.note:
        parts.append(row.note)
    return "; ".join(parts) or OK


def history_table(switches: Iterable[Switch]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("began (UTC)", "host", "service", "who", "what", "from", "to", "outcome", "took", "why"):
        table.add_column(name, no_wrap=name in ("began (UTC)", "host", "service", "from", "to"))
    for item in switches:
        outcome = f"{item.outcome} ({item.verdict})" if item.verdict else item.outcome
        took = "" if item.took_s is None else f"{item.took_s:.0f} s"
        table.add_row(
            *map(escape, (short_time(item.began), item.host, item.service, item.operator, item.purpose)),
            *map(escape, (item.old or "nothing", item.new)),
            f"[{OUTCOMES.get(item.outcome, 'red')}]{escape(outcome)}[/]",
            *map(escape, (took, why_of(item))),
        )
    return table


def why_of(item: Switch) -> str:
    """The host's reason for the outcome, the operator's for the switch, and what was overridden."""
    parts = [item.reason]
    parts.append(f"operator: {item.why}" if item.why else "")
    parts.append(f"overrides: {', '.join(item.overrides)}" if item.overrides else "")
    return "; ".join(part for part in parts if part)


def short_time(text: str) -> str:
    """`2026-11-21 02:13` of an ISO time; anything else as it is."""
    return f"{text[:10]} {text[11:16]}" if _iso(text) else text


def utc(text: str) -> str:
    """The same with its timezone, which anything but our own times carries already."""
    return f"{short_time(text)} UTC" if _iso(text) else text


def _iso(text: str) -> bool:
    return text[4:5] == "-" and text[10:11] == "T"
