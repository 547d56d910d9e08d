"""The table at the end of a run: the outcome of every host and service.

Printed also where the run aborts.
"""

from __future__ import annotations

from pyinfra import logger
from pyinfra.api import Host
from pyinfra.api.state import BaseStateCallback, State
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyinfra_vllm import pyinfra_command
from pyinfra_vllm.printable import printable
from pyinfra_vllm.rollout import plans
from pyinfra_vllm.rollout.progress import PROGRESS, UNDER_WAY, Outcome

COLOURS = {
    "committed": "green",
    "unchanged": "cyan",
    "deferred": "yellow",
    "taken back": "yellow",
    "tried": "cyan",
    UNDER_WAY: "yellow",
}


class Summary(BaseStateCallback):
    """Prints once, when the first host is disconnected: pyinfra gets there however the run ended."""

    printed = False

    @staticmethod
    def host_disconnect(state: State, host: Host) -> None:
        if Summary.printed:
            return
        if state.is_executing:
            Summary.printed = True
            print_summary(state)
        elif pyinfra_command.is_dry():
            Summary.printed = True
            logger.info(f"--> Dry run: {foretold(state)}")


def install(state: State) -> None:
    if not any(isinstance(handler, Summary) for handler in state.callback_handlers):
        state.add_callback_handler(Summary())
        pyinfra_command.end_on_signals()


def foretold(state: State) -> str:
    """Last line of a dry run: the hosts that a run would refuse, and those that could not be asked."""
    hosts = [host.name for host in state.inventory if state.is_host_in_limit(host)]
    failed = [host for host in hosts if host in {host.name for host in state.failed_hosts}]
    if not failed:
        return "nothing would be refused"
    names = ", ".join(text for text, _ in plans.host_names(failed, hosts))
    return f"{len(failed)} of {len(hosts)} hosts would be refused or did not answer, as said above: {names}"


def rows(state: State) -> list[Outcome]:
    """One outcome for each host and service that was wanted or failed before it could be."""
    known = dict(PROGRESS.outcomes)
    for (name, service), text in PROGRESS.going.items():
        release = PROGRESS.wanted[name, service].release.id if (name, service) in PROGRESS.wanted else ""
        known.setdefault((name, service), Outcome(name, service, UNDER_WAY, text, release))
    for (name, service), item in PROGRESS.wanted.items():
        known.setdefault(
            (name, service), Outcome(name, service, "held", "the run ended before its wave", item.release.id)
        )
    hosts_seen = {name for name, _ in known}
    for failed in sorted(state.failed_hosts, key=lambda host: host.name):
        if failed.name not in hosts_seen:
            known[failed.name, ""] = Outcome(
                failed.name, "", "failed", "see its error above; nothing was switched"
            )
    return [known[key] for key in sorted(known)]


def print_summary(state: State) -> None:
    table = Table("host", "service", "release", "outcome", "why", box=None, pad_edge=False)
    for row in rows(state):
        colour = COLOURS.get(row.status, "red")
        # Text, not markup: brackets in messages of hosts are theirs
        said = Text(printable(row.message))
        table.add_row(row.host, row.service, row.release, Text(printable(row.status), style=colour), said)
    console = Console(stderr=True)
    logger.info("--> Rollout:")
    console.print(table)
