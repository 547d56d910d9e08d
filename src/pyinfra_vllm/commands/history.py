"""`pyinfra-vllm history`: every switch of the fleet by time, as the hosts recorded it. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

import click

from ..asking import Hosts
from ..errors import DeclarationError
from ..report import looking
from ..report.history import Switch, moment, problems, switches
from ..report.tables import console, history_table
from ..window import parse_duration

DEFAULT_INVENTORY = "inventory/prod.py"


def run(
    inventory: str,
    limit: Sequence[str] = (),
    group_data: Sequence[str] = (),
    since: datetime | None = None,
    newest: int = looking.NEWEST,
) -> tuple[int, list[Switch], dict[str, str]]:
    """The command: exit code (1 when a host could not be asked), the switches, and host -> problem."""
    with Hosts(inventory, limit, group_data) as hosts:
        answers = hosts.ask(looking.at_history(newest))
    missing = problems(answers)
    return int(bool(missing)), switches(answers, since), missing


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
@click.option("--newest", default=looking.NEWEST, show_default=True, help="Switches of each service.")
@click.option("--limit", multiple=True, metavar="HOST", help="Only these hosts or groups.")
@click.option("--group-data", multiple=True, help="Further group data folders or files, as for pyinfra.")
@click.option("--json", "json_wanted", is_flag=True, help="Print the result as JSON.")
def history(
    inventory: str,
    since: str | None,
    newest: int,
    limit: tuple[str, ...],
    group_data: tuple[str, ...],
    json_wanted: bool,
) -> int:
    """Show who switched what, when, from which release to which, and what came of it.

    The hosts' own append-only records, merged by time. Exit code 1 when a host could not be asked.
    """
    code, found, missing = run(inventory, limit, group_data, since_when(since), newest)
    if json_wanted:
        click.echo(json.dumps({"switches": [item.as_dict() for item in found], "missing": missing}, indent=2))
        return code
    console().print(history_table(found))
    for host, problem in missing.items():
        click.echo(f"{host}: {problem}", err=True)
    return code
