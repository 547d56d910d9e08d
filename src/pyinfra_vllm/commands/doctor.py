"""`pyinfra-vllm doctor`: whether each host could start its services again, and go back, now."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from ..asking import Host, Hosts
from ..inventory import root_of
from ..on_host.doctor import Check
from ..report import checkup
from ..report.checkup import Examined
from ..report.tables import console
from . import options
from .status import declared

# A sample of some checkpoints, and nvidia-smi of a driver that hangs; every byte of all of them.
LIMIT_S, DEEP_LIMIT_S = 180.0, 4 * 3600.0


def run(
    inventory: str, limit: Sequence[str] = (), group_data: Sequence[str] = (), *, deep: bool = False
) -> list[Examined]:
    """The checks of every host. Raises DeclarationError where the inventory can't be loaded."""
    from ..operations.doctor import examine

    wanted, problem = declared(inventory, group_data)

    def question(host: Host) -> list[Check]:
        mine = wanted.hosts.get(host.name) if wanted else None
        return examine(host, root_of(host), mine, deep=deep)

    with Hosts(inventory, limit, group_data) as hosts:
        if problem:
            click.echo(problem, err=True)
        answers = hosts.ask(question, limit_s=DEEP_LIMIT_S if deep else LIMIT_S)
    return [Examined(each.host, tuple(each.value or ()), each.problem) for each in answers]


@click.command()
@options.inventory
@click.option("--deep", is_flag=True, help="Read every byte of checkpoints and runtimes; takes minutes.")
@options.limit
@options.group_data
@options.json_wanted
def doctor(
    inventory: str, deep: bool, limit: tuple[str, ...], group_data: tuple[str, ...], json_wanted: bool
) -> int:
    """Find out whether each host could restart its services, and go back, right now.

    Looks at drivers, the files of the current and of the previous release, runtimes, secrets, ports, GPUs,
    the recovery, clocks, disks, memory, hooks and windows. Exit code 1 when a check fails, or a host could
    not be asked. Changes nothing. Where metrics are declared, the result is among them.
    """
    found = run(inventory, limit, group_data, deep=deep)
    if json_wanted:
        click.echo(json.dumps({"hosts": [each.as_dict() for each in found]}, indent=2))
    else:
        checkup.show(console(), found)
    return int(any(each.state != "ok" for each in found))
