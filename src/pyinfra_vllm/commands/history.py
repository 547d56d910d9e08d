"""`pyinfra-vllm history`: every switch of the fleet by time, as the hosts recorded it. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click

from ..asking import Hosts
from ..errors import DeclarationError
from ..printable import printable
from ..report import looking
from ..report.history import Switch, left_out, moment, problems, switches
from ..report.tables import console, history_table
from ..window import parse_duration

DEFAULT_INVENTORY = "inventory/prod.py"


@dataclass(frozen=True)
class Past:
    """What the hosts told: `missing` says of which none did and why, `left_out` how many switches were not
    asked for.
    """

    switches: list[Switch]
    missing: dict[str, str]
    left_out: int = 0

    def as_dict(self) -> dict[str, Any]:
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


def since_when(text: str | None) -> datetime | None:
    """`--since`: a time, a date, or how long ago. Raises DeclarationError."""
    if text is None:
        return None
    try:
        return datetime.now(UTC) - parse_duration(text)
    except ValueError:
        return _moment(text)


def _moment(text: str) -> datetime:
    try:
        return moment(text)
    except ValueError as error:
        raise DeclarationError(
            f"--since {text!r}: must be like 2026-11-20, 2026-11-20T02:00Z or 7d"
        ) from error


@click.command()
@click.argument("inventory", default=DEFAULT_INVENTORY)
@click.option("--since", metavar="TIME", help="A time, a date, or how long ago: 7d, 12h.")
@click.option(
    "--newest",
    type=click.IntRange(1),
    help=f"So many switches of each service [{looking.NEWEST}; with --since all of them].",
)
@click.option("--limit", multiple=True, metavar="HOST", help="Only these hosts or groups.")
@click.option("--group-data", multiple=True, help="Further group data folders or files, as for pyinfra.")
@click.option("--json", "json_wanted", is_flag=True, help="Print the result as JSON.")
def history(
    inventory: str,
    since: str | None,
    newest: int | None,
    limit: tuple[str, ...],
    group_data: tuple[str, ...],
    json_wanted: bool,
) -> int:
    """Show who switched what, when, from which release to which, and what came of it.

    The hosts' own append-only records, merged by time. Exit code 1 when a host could not be asked.
    """
    past = run(inventory, limit, group_data, since_when(since), newest)
    if json_wanted:
        click.echo(json.dumps(past.as_dict(), indent=2))
        return int(bool(past.missing))
    console().print(history_table(past.switches))
    if past.left_out:
        plural = "es" if past.left_out > 1 else ""
        click.echo(f"{past.left_out} older switch{plural} not shown: --since or --newest does.", err=True)
    for host, problem in past.missing.items():
        click.echo(printable(f"{host}: {problem}"), err=True)
    return int(bool(past.missing))
