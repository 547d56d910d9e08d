"""`pyinfra-vllm plan`: the changes and refusals of a rollout, host by host. Changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence

import click
from pyinfra.api import Host

from pyinfra_vllm import fleet, spoken
from pyinfra_vllm.rollout import plans
from pyinfra_vllm.rollout.plans import HostPlan

from ..asking import Answer, Hosts
from ..config import Fleet
from . import options

LIMIT_S = 180.0
NARROWEST = 40
COLOURS = {plans.ACTIONS[plans.REFUSED][0]: "red", plans.WARNINGS: "yellow"}
HEADINGS = {heading for heading, _ in plans.ACTIONS.values()} | {plans.WARNINGS}


def run(
    inventory: str, limit: Sequence[str] = (), group_data: Sequence[str] = (), data: Sequence[str] = ()
) -> list[HostPlan]:
    """The plan of each host that `limit` takes.

    Raises DeclarationError or LockError; then no host was contacted.
    """
    # imported for planning only
    from pyinfra_vllm.operations.util.foreseen import host_plan
    from pyinfra_vllm.operations.util.together import ask_together

    values = spoken.parse_data(data)
    wanted = fleet.load(inventory, values, group_data, limit=limit, need_secrets=False)

    def planned(host: Host) -> HostPlan:
        declared = wanted.hosts[host.name]
        ask_together(host, declared)
        return host_plan(host, declared, wanted.lock, wanted.overrides)

    with Hosts(inventory, limit, group_data) as hosts:
        answers = hosts.ask(planned, LIMIT_S)
    return [answer.value or _unanswered(answer, wanted) for answer in answers]


def _unanswered(answer: Answer[HostPlan], wanted: Fleet) -> HostPlan:
    services = wanted.hosts[answer.host].services
    refused = tuple(plans.ServicePlan(service.name, plans.REFUSED) for service in services)
    return HostPlan(answer.host, refused, (answer.problem,))


@click.command()
@options.inventory
@options.limit
@options.group_data
@click.option("--data", multiple=True, metavar="KEY=VALUE", help="For this run only, as for pyinfra.")
@click.option("--json", "json_wanted", is_flag=True, help="Print the plan as JSON.")
def plan(
    inventory: str,
    limit: tuple[str, ...],
    group_data: tuple[str, ...],
    data: tuple[str, ...],
    json_wanted: bool,
) -> int:
    """Show what `pyinfra INVENTORY deploy.py` would do: per host what changes, and what is refused and why.

    Exit code 0 when nothing is refused, 1 when something is or a host can't be asked, 2 when the declaration
    is invalid.
    """
    found = run(inventory, limit, group_data, data)
    if json_wanted:
        click.echo(json.dumps(plans.as_json(found), indent=2))
    else:
        width = max(NARROWEST, shutil.get_terminal_size((80, 24)).columns)
        for line in plans.lines(found, width):
            click.echo(click.style(line, fg=COLOURS.get(line), bold=True) if line in HEADINGS else line)
    return plans.exit_code(found)
