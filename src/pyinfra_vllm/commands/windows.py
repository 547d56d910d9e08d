"""`pyinfra-vllm windows`: whether a switch may begin, why, until when, and the next openings.

Answers for every service of an inventory, or for one cron line given here. Contacts no host, so the
estimate is the declared one; `pyinfra INVENTORY deploy.py --dry` shows the one that each host has measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from pyinfra_vllm.rollout.estimate import Estimate, estimate

from ..config.problems import nearest
from ..errors import DeclarationError
from ..ics import closed
from ..window import (
    NEXT,
    YEARS,
    Window,
    WindowState,
    never_begins,
    parse_duration,
    state,
    timezone_names,
    zone,
)
from . import options

DEFAULT_ESTIMATE = "45m"


@dataclass(frozen=True)
class Answer:
    """One state, and the services (`host/service`) that it holds for."""

    state: WindowState
    services: tuple[str, ...] = ()
    never: str = ""  # why no switch can ever begin

    @property
    def reason(self) -> str:
        never = f"; no switch can ever begin, because the window {self.never}" if self.never else ""
        return f"{self.state.reason}{never}"

    @property
    def last_start(self) -> datetime | None:
        return None if self.never else self.state.last_start

    @property
    def openings(self) -> tuple[datetime, ...]:
        """The next openings; those in which nothing can begin are none."""
        return () if self.never else self.state.next

    def as_dict(self) -> dict[str, object]:
        return {
            "open": self.state.open,
            "closes": _iso(self.state.closes),
            "last_start": _iso(self.last_start),
            "next": [_iso(moment) for moment in self.openings],
            "reason": self.reason,
        }


@click.command()
@click.argument("inventory", required=False)
@click.option(
    "--at", "at_text", metavar="TIME", help="ISO 8601; without offset in the window's timezone. Default: now."
)
@click.option("--cron", help='When it opens, like "0 2 * * *".')
@click.option("--duration", help='How long it stays open, like "3h", or seconds.')
@click.option("--timezone", help="IANA name, like Europe/Berlin.")
@click.option(
    "--except", "exceptions", multiple=True, metavar="DATE", help="A date, DATE..DATE, or an .ics file."
)
@click.option(
    "--switch-estimate",
    metavar="DURATION",
    help=f"Duration of a switch and its rollback [{DEFAULT_ESTIMATE}].",
)
@click.option("--limit", multiple=True, metavar="HOST", help="Only these hosts or groups of the inventory.")
@options.group_data
@options.json_wanted
def windows(
    inventory: str | None,
    at_text: str | None,
    cron: str | None,
    duration: str | None,
    timezone: str | None,
    exceptions: tuple[str, ...],
    switch_estimate: str | None,
    limit: tuple[str, ...],
    group_data: tuple[str, ...],
    json_wanted: bool,
) -> None:
    """Say whether a switch may begin, why, until when, and the next five openings.

    For every service of INVENTORY, or for one window given by --cron, --duration and --timezone.
    """
    direct = {"--cron": cron, "--duration": duration, "--timezone": timezone}
    given = [name for name, value in direct.items() if value is not None]
    if given:
        missing = [name for name in direct if name not in given]
        if missing or inventory or limit or group_data:
            alone = "goes without INVENTORY, --limit and --group-data"
            also = f"also needs {', '.join(missing)}" if missing else alone
            raise click.UsageError(f"{', '.join(given)} {also}")
        window = direct_window(str(cron), str(duration), str(timezone), exceptions)
        answers = [direct_answer(window, at_text, switch_estimate)]
    elif exceptions or switch_estimate:
        raise click.UsageError("--except and --switch-estimate go with --cron; an inventory declares its own")
    else:
        answers = fleet_answers(inventory or options.DEFAULT_INVENTORY, at_text, limit, group_data)
    told = json.dumps(as_json_object(answers), indent=2) if json_wanted else "\n".join(sentences(answers))
    click.echo(told)


def direct_window(cron: str, duration: str, timezone: str, exceptions: Sequence[str]) -> Window:
    """The window of the command line; raises DeclarationError naming the option and its value."""
    length = _option("--duration", duration, _length)
    _option("--timezone", timezone, _known_zone)
    excepted = tuple(part for text in exceptions for part in _option("--except", text, closed))
    try:
        return Window(cron, length, timezone, excepted)
    except ValueError as error:
        raise DeclarationError(f"--cron {cron!r}, --duration {duration!r}: {error}") from error


def direct_answer(window: Window, at_text: str | None, text: str | None) -> Answer:
    """The state of one window."""
    needed = _option("--switch-estimate", text or DEFAULT_ESTIMATE, _length)
    source = "--switch-estimate" if text else "the default"
    return _answer((window,), moment(at_text, window.timezone), Estimate(needed, source))


def _answer(
    windows: tuple[Window, ...], at: datetime, needed: Estimate, services: tuple[str, ...] = ()
) -> Answer:
    never = never_begins(windows, at, needed.length, needed.source)
    return Answer(state(windows, at, needed.length, needed.source), services, never)


def fleet_answers(
    inventory: str, at_text: str | None, limit: Sequence[str], group_data: Sequence[str] = ()
) -> list[Answer]:
    """One answer for each set of windows and estimate among the services, in the inventory's order."""
    from .. import fleet  # pyinfra takes half a second to import; one cron line needs none of it

    loaded = fleet.load(inventory, group_data=group_data, need_lock=False, limit=limit)
    now = datetime.now(UTC).isoformat()
    holders: dict[tuple[tuple[Window, ...], Estimate], list[str]] = {}
    for host in loaded.selected:
        for service in loaded.hosts[host].services:
            holders.setdefault((service.window, estimate(service)), []).append(f"{host}/{service.name}")
    if not holders:
        raise DeclarationError(f"{inventory} declares no service")
    return [
        _answer(declared, moment(at_text or now, _first_zone(declared)), needed, tuple(names))
        for (declared, needed), names in holders.items()
    ]


def moment(text: str | None, timezone: str) -> datetime:
    """The time asked about: aware; without an offset it is the wall clock of `timezone`.

    Raises DeclarationError.
    """
    if text is None:
        return datetime.now(UTC)
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise DeclarationError(
            f"--at {text!r}: must be a time like 2026-11-21T02:30 or 2026-11-21T02:30+01:00"
        ) from error
    if at.year not in YEARS:
        raise DeclarationError(f"--at {text!r}: must be in the years from {YEARS[0]} to {YEARS[-1]}")
    return at if at.tzinfo is not None else at.replace(tzinfo=zone(timezone))


def as_json_object(answers: Sequence[Answer]) -> dict[str, object]:
    """One answer as it is.

    Several as one: whether any service may begin, and each answer under `services`.
    """
    if len(answers) == 1:
        return answers[0].as_dict()
    together = Answer(_together(answers))
    each = [{"services": list(answer.services), **answer.as_dict()} for answer in answers]
    return {**together.as_dict(), "services": each}


def sentences(answers: Sequence[Answer]) -> list[str]:
    """The answers for a person."""
    lines: list[str] = []
    for answer in answers:
        lines += [", ".join(answer.services) + ":"] if answer.services else []
        lines.append(answer.reason if answer.state.open else f"closed: {answer.reason}")
        if answer.state.closes is not None and answer.last_start is not None:
            lines.append(f"closes      {_shown(answer.state.closes)}")
            lines.append(f"last start  {_shown(answer.last_start)}")
        for number, opening in enumerate(answer.openings):
            lines.append(f"{'next' if number == 0 else '':12}{_shown(opening)}")
        lines.append("")
    return lines[:-1]


def _together(answers: Sequence[Answer]) -> WindowState:
    opened = [answer.state for answer in answers if answer.state.open and not answer.never]
    unending = any(item.closes is None for item in opened)
    openings = sorted({opening for answer in answers for opening in answer.openings})
    return WindowState(
        bool(opened),
        None if unending or not opened else max(item.closes for item in opened if item.closes),
        None if unending or not opened else max(item.last_start for item in opened if item.last_start),
        tuple(openings[:NEXT]),
        f"open for {len(opened)} of {len(answers)} groups of services: see `services`",
    )


def _first_zone(declared: Sequence[Window]) -> str:
    return declared[0].timezone if declared else "UTC"


def _length(text: str) -> timedelta:
    """On a command line a number of seconds is text too."""
    return parse_duration(int(text) if text.strip().isdecimal() else text)


def _known_zone(name: str) -> None:
    try:
        zone(name)
    except ValueError as error:
        meant = nearest(name, timezone_names())
        raise ValueError(f"unknown timezone{f'; did you mean {meant}?' if meant else ''}") from error


def _option(option: str, value: str, read: Any) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise DeclarationError(f"{option} {value!r}: {error}") from error


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at is not None else None


def _shown(at: datetime) -> str:
    return f"{at:%a} {at.isoformat(sep=' ', timespec='minutes')} ({at:%Z})"
