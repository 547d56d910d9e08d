"""`pyinfra-vllm tune`: what tuning would try on each service's card, and when. Contacts no host."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime

import click

from pyinfra_vllm import fleet
from pyinfra_vllm.config import Service
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.rollout.plans import host_names
from pyinfra_vllm.tune import Plan, lines, planned

from . import options
from .windows import moment

WIDTH_WITHOUT_TERMINAL = 120


def run(
    inventory: str, at: datetime, limit: Sequence[str] = (), group_data: Sequence[str] = ()
) -> list[tuple[list[str], Service, Plan | None]]:
    """The hosts, declaration and plan of every service, alike ones together. Raises DeclarationError or
    LockError.
    """
    wanted = fleet.load(inventory, group_data=group_data, limit=limit, need_secrets=False)
    alike: list[tuple[list[str], Service]] = []
    for host in wanted.selected or tuple(wanted.hosts):
        for service in wanted.hosts[host].services:
            known = next((hosts for hosts, other in alike if other == service), None)
            if known is None:
                alike.append(([host], service))
            else:
                known.append(host)
    if not alike:
        raise DeclarationError(f"{inventory} declares no service")
    return [(hosts, service, planned(service, wanted.checkpoint(service), at)) for hosts, service in alike]


@click.command()
@options.inventory
@options.limit
@options.group_data
@click.option("--plan", "only_plan", is_flag=True, help="Show what would be tried, and when. Needed for now.")
@click.option("--at", "at_text", metavar="TIME", help="Plan from this time on instead of from now.")
@options.json_wanted
def tune(
    inventory: str,
    limit: tuple[str, ...],
    group_data: tuple[str, ...],
    only_plan: bool,
    at_text: str | None,
    json_wanted: bool,
) -> int:
    """Show which configurations are worth trying on each service's card, what rules the others out, and how
    many nights the trials would take.

    Running the trials is not part of this version: declare a configuration and roll it out, and its gate
    compares it with the current one (docs/tune.md).

    Exits with 1 where a declaration can't work as it is.
    """
    if not only_plan:
        raise click.UsageError("say --plan: this version shows what would be tried, and runs no trial")
    found = run(inventory, moment(at_text, "UTC"), limit, group_data)
    if json_wanted:
        answers = [_as_dict(hosts, service, plan) for hosts, service, plan in found]
        click.echo(json.dumps({"services": answers}, indent=2))
    else:
        for hosts, service, plan in found:
            _show(hosts, service, plan)
    return int(any(plan is not None and plan.space.current.errors for _, _, plan in found))


def _as_dict(hosts: Sequence[str], service: Service, plan: Plan | None) -> dict[str, object]:
    if plan is None:
        return {"hosts": list(hosts), "service": service.name, "unknown": _unknown(service)}
    return {"hosts": list(hosts), **plan.as_dict()}


def _unknown(service: Service) -> str:
    missing = "runtime.version" if service.runtime.version is None else "gpu"
    return f"only the hosts know what it runs on: declare `{missing}`"


def _show(hosts: Sequence[str], service: Service, plan: Plan | None) -> None:
    from rich.console import Console  # a tenth of a second that --json does not need
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
    on = ", ".join(text for text, _ in host_names(hosts))
    if plan is None:
        console.print(f"{service.name} on {on}: {_unknown(service)}", markup=False, highlight=False)
        return
    asked = plan.space.current.asked
    count = f"{asked['gpu_count']} x " if asked["gpu_count"] > 1 else ""
    card = f"{count}{asked['gpu']}, vLLM {asked['vllm_text']}"
    title = f"{service.name} on {on}: {asked['model']}, {card}, for {asked['objective']}"
    console.print(title, markup=False, highlight=False, style="bold")
    console.print(f"Tried against: {plan.serves}", markup=False, highlight=False)
    table = Table(show_lines=True)
    for heading in ("Configuration", "Changes", "Known to matter", "Answers", "Source"):
        table.add_column(heading, overflow="fold")
    for each in plan.order:
        entry = each.entry
        row = (entry.name, each.changes, entry.matters or "nobody measured it", entry.answers, entry.source)
        table.add_row(*map(Text, row))
    if plan.order:
        console.print(table)
    for line in lines(plan):
        console.print(line, markup=False, highlight=False)
    for text in plan.space.current.errors:
        console.print(f"Error: {text}", style="red", markup=False, highlight=False)
