"""`pyinfra-vllm status`: what each host runs, and what differs from what was declared. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from .. import fleet
from ..asking import Hosts
from ..config import Fleet
from ..errors import RolloutError
from ..report import looking
from ..report.status import Row, exit_code, rows
from ..report.tables import console, show_status

DEFAULT_INVENTORY = "inventory/prod.py"


def declared(inventory: str, group_data: Sequence[str] = ()) -> tuple[Fleet | None, str]:
    """The declaration, or None and why: a broken declaration must not hide what runs."""
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


def as_json(found: Sequence[Row]) -> dict[str, Any]:
    services: dict[str, list[dict[str, Any]]] = {row.host: [] for row in found}
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
@click.argument("inventory", default=DEFAULT_INVENTORY)
@click.option("--limit", multiple=True, metavar="HOST", help="Only these hosts or groups.")
@click.option("--group-data", multiple=True, help="Further group data folders or files, as for pyinfra.")
@click.option("--wide", is_flag=True, help="Every column and every service, however long the lines get.")
@click.option("--json", "json_wanted", is_flag=True, help="Print the result as JSON.")
def status(
    inventory: str, limit: tuple[str, ...], group_data: tuple[str, ...], wide: bool, json_wanted: bool
) -> int:
    """Show what each host runs, since when, how it was judged, and what differs from what is declared.

    The worst comes first, and why stands below it. Columns that the screen has no room for are left out.

    Exit code 1 when a host could not be asked; the others are shown all the same.
    """
    code, found = run(inventory, limit, group_data)
    if json_wanted:
        click.echo(json.dumps(as_json(found), indent=2))
    else:
        show_status(console(), found, wide=wide)
    return code
