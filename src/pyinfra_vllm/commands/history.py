"""`pyinfra-vllm history`: every switch of the fleet by time, as the hosts recorded it. Changes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

import click

from ..asking import Hosts
from ..errors import DeclarationError
from ..printable import printable
from ..report import looking
from ..report.history import Switch, left_out, moment, problems, switches
from ..report.tables import console, show_history
from ..text import counted
from ..window import parse_duration
from . import options

DAYS = {"today": 0, "yesterday": 1}
WEEKS = re.compile(r"(\d{1,4})w")


@dataclass(frozen=True)
class Past:
    """The hosts' answers: `missing` says which gave none and why, `left_out` counts older switches."""

    switches: list[Switch]
    missing: dict[str, str]
    left_out: int = 0

    def as_dict(self) -> dict[str, object]:
        switches = [item.as_dict() for item in self.switches]
        return {"switches": switches, "missing": self.missing, "left_out": self.left_out}


def run(
    inventory: str,
    limit: Sequence[str] = (),
    group_data: Sequence[str] = (),
    since: datetime | None = None,
    newest: int | None = None,
) -> Past:
    """The command. Without `newest` a `since` asks for all that is younger, however much that is."""
    if newest is None:
        newest = looking.NEWEST if since is None else 0
    with Hosts(inventory, limit, group_data) as hosts:
        answers = hosts.ask(looking.at_history(newest))
    return Past(switches(answers, since), problems(answers), left_out(answers, since))


def since_when(text: str | None, now: datetime | None = None) -> datetime | None:
    """`--since`: a time, a date, `today`, `yesterday`, or how long ago. Raises DeclarationError.

    + now: left out: now, and days begin at this machine's midnight
    """
    if text is None:
        return None
    if text in DAYS:
        return _midnight(now or datetime.now(), DAYS[text])
    now = now or datetime.now(UTC)
    try:
        weeks = WEEKS.fullmatch(text)
        return now - (timedelta(weeks=int(weeks[1])) if weeks else parse_duration(text))
    except (ValueError, OverflowError):
        return _moment(text)


def _midnight(now: datetime, days_ago: int) -> datetime:
    """The beginning of that day in `now`'s timezone; without one, in this machine's."""
    wall = datetime.combine(now.date() - timedelta(days=days_ago), time(), now.tzinfo)
    return wall.astimezone(UTC)


def _moment(text: str) -> datetime:
    try:
        return moment(text)
    except ValueError as error:
        raise DeclarationError(
            f"--since {text!r}: must be like yesterday, 2026-11-20, 2026-11-20T02:00Z, 12h, 7d or 2w"
        ) from error


@click.command()
@options.inventory
@click.option("--since", metavar="TIME", help="A time, a date, yesterday, or how long ago: 12h, 7d, 2w.")
@click.option(
    "--newest",
    type=click.IntRange(1),
    help=f"So many switches of each service [{looking.NEWEST}; with --since all of them].",
)
@options.limit
@options.group_data
@click.option("--wide", is_flag=True, help="Every column, however long the lines get.")
@options.json_wanted
def history(
    inventory: str,
    since: str | None,
    newest: int | None,
    limit: tuple[str, ...],
    group_data: tuple[str, ...],
    wide: bool,
    json_wanted: bool,
) -> int:
    """Show who switched what, when, from which release to which, and what came of it.

    The hosts' own append-only records, merged by time. Exit code 1 when a host could not be asked.
    """
    past = run(inventory, limit, group_data, since_when(since), newest)
    if json_wanted:
        click.echo(json.dumps(past.as_dict(), indent=2))
        return int(bool(past.missing))
    show_history(console(), past.switches, wide=wide)
    if past.left_out:
        older = counted(past.left_out, "older switch", "older switches")
        click.echo(f"{older} not shown: --since or --newest does.", err=True)
    for host, problem in past.missing.items():
        click.echo(printable(f"{host}: {problem}"), err=True)
    return int(bool(past.missing))
