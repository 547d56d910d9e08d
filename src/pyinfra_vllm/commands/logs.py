"""`pyinfra-vllm logs`: the journal of a host's services, the root cause first. Changes nothing."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from ..asking import Answer, Hosts, fact
from ..errors import DeclarationError
from ..facts.logs import Logs
from ..inventory import root_of
from ..on_host.server.logs import ServiceLog
from ..printable import printable
from ..report import journal
from . import options

LINES = 100


def run(
    host: str, service: str | None, inventory: str, newest: int, group_data: tuple[str, ...] = ()
) -> Answer[list[ServiceLog]]:
    """The answer of one host. Raises DeclarationError unless exactly one host of the inventory matches."""
    with Hosts(inventory, (host,), group_data) as hosts:
        if len(hosts.names) > 1:
            raise DeclarationError(
                f"{host!r} means {', '.join(hosts.names)}: name one of them; none was contacted."
            )
        (answer,) = hosts.ask(
            lambda asked: fact(asked, Logs, root=root_of(asked), newest=newest, service=service)
        )
    return answer


@click.command()
@click.argument("host")
@click.argument("service", required=False)
@click.option(
    "--inventory", default=options.DEFAULT_INVENTORY, show_default=True, help="Where the host is listed."
)
@click.option(
    "--lines",
    "newest",
    type=click.IntRange(1, 10_000),
    default=LINES,
    show_default=True,
    help="Of each unit.",
)
@options.group_data
@options.json_wanted
def logs(
    host: str,
    service: str | None,
    inventory: str,
    newest: int,
    group_data: tuple[str, ...],
    json_wanted: bool,
) -> int:
    """Show the journal of a host's services and of their switches, by time.

    The root cause of the newest start that failed comes first. Exit code 1 when the host could not be asked,
    has no such service, or its journal can't be read.
    """
    answer = run(host, service, inventory, newest, group_data)
    if json_wanted:
        told = {
            "host": answer.host,
            "problem": answer.problem,
            "services": list(map(asdict, answer.value or [])),
        }
        click.echo(json.dumps(told, indent=2))
    elif answer.value is None:
        click.echo(printable(f"{answer.host}: {answer.problem}"), err=True)
    else:
        for line in journal.lines(answer.host, answer.value):
            click.echo(line)
    return int(answer.value is None or any(service.problem for service in answer.value))
