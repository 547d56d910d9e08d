"""Prints `doctor`'s findings on a terminal: one line a host, the worst first, with the problems below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console

from ..on_host.doctor import Check
from . import columns
from .columns import Line

NAMES = ("state", "host", "checks")
COLOURS = {"down": "red", "fails": "red", "ok": "green"}


@dataclass(frozen=True)
class Examined:
    """One host: its checks, or why it could not be asked."""

    host: str
    checks: tuple[Check, ...] = ()
    problem: str = ""

    @property
    def wrong(self) -> list[Check]:
        return [check for check in self.checks if not check.ok]

    @property
    def state(self) -> str:
        if self.problem:
            return "down"
        return "fails" if self.wrong else "ok"

    def as_dict(self) -> dict[str, object]:
        """For --json: a host that could not be asked has failed one check, that it answers."""
        unreached = [{"name": "reached", "ok": False, "detail": self.problem}] if self.problem else []
        checks = [*unreached, *map(asdict, self.checks)]
        return {"host": self.host, "ok": self.state == "ok", "checks": checks}


def show(screen: Console, found: Sequence[Examined]) -> None:
    worst_first = sorted(found, key=lambda each: list(COLOURS).index(each.state))
    columns.show(screen, NAMES, [_line(each) for each in worst_first], heading=False)


def _line(each: Examined) -> Line:
    if each.problem:
        return Line({"state": each.state, "host": each.host}, COLOURS[each.state], (each.problem,))
    count = len(each.checks)
    said = f"{len(each.wrong)} of {count} checks failed" if each.wrong else f"{count} checks"
    reasons = tuple(f"{check.name}: {check.detail}" for check in each.wrong)
    return Line({"state": each.state, "host": each.host, "checks": said}, COLOURS[each.state], reasons)
