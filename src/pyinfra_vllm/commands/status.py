"""`pyinfra-vllm status`: the running release of each host, and its drift. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from .. import fleet
from ..asking import Hosts
from ..config import Fleet
from ..errors import RolloutError
from ..report import looking
from ..report.status import Row, exit_code, rows
from ..report.tables import console, show_status
from . import options


def declared(inventory: str, group_data: Sequence[str] = ()) -> tuple[Fleet | None, str]:
    """The declaration, or None and why: a broken declaration must not hide the running releases."""
    try:
        return fleet.load(inventory, group_data=group_data, need_lock=False), ""
    except RolloutError as error:
        return None, f"The declaration can't be read, so drift from it is not shown: {error}"


def run(inventory: str, limit: Sequence[str] = (), group_data: Sequence[str] = ()) -> tuple[int, list[Row]]:
    """The command: exit code (1 when a host could not be asked) and the rows. Raises DeclarationError."""
    wanted, problem = declared(inventory, group_data)
    with Hosts(inventory, limit, group_data) as hosts:
        if problem:
            click.echo(problem, err=True)
        found = rows(hosts.ask(looking.at_status(wanted)))
    return exit_code(found), found


def as_json(found: Sequence[Row]) -> dict[str, object]:
    services: dict[str, list[dict[str, object]]] = {row.host: [] for row in found}
    for row in found:
        if row.service:
            values = {key: value for key, value in row.as_dict().items() if key not in ("host", "problem")}
            services[row.host].append(values)
    problems = {row.host: row.problem for row in found}
    return {
        "hosts": [
            {"host": host, "problem": problems[host], "services": listed} for host, listed in services.items()
        ]
    }


@click.command()
@options.inventory
@options.limit
@options.group_data
@click.option("--wide", is_flag=True, help="Every column and every service, however long the lines get.")
@options.json_wanted
def status(
    inventory: str, limit: tuple[str, ...], group_data: tuple[str, ...], wide: bool, json_wanted: bool
) -> int:
    """Show what each host runs, since when, how it was judged, and what differs from what is declared.

    The worst comes first, and why stands below it. Columns that the screen has no room for are left out.

    Exit code 1 when a host could not be asked, or a switch could not be taken back (unproven); the others are
    shown all the same.
    """
    code, found = run(inventory, limit, group_data)
    if json_wanted:
        click.echo(json.dumps(as_json(found), indent=2))
    else:
        show_status(console(), found, wide=wide)
    return code
