"""`pyinfra-vllm watch`: a rollout as it happens, asked of the hosts themselves; it steers nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

import click
from rich.live import Live as Screen

from .. import fleet
from ..asking import Hosts
from ..config import Fleet
from ..report import looking
from ..report.tables import console
from ..report.watching import Live, lives, sentence, table
from . import options


def look(hosts: Hosts, wanted: Fleet) -> list[Live]:
    """Every service as it is at this moment."""
    answers = hosts.ask(looking.at_status(wanted))
    return lives(answers, wanted.rollout, datetime.now(UTC), wanted.serving)


def exit_code(found: Sequence[Live]) -> int:
    """1 when a host could not be asked."""
    return int(any(item.state == "down" for item in found))


@click.command()
@options.inventory
@click.option(
    "--every",
    type=options.Seconds(0.1, 86400),
    default=2.0,
    show_default=True,
    help="Seconds between looks.",
)
@click.option("--once", is_flag=True, help="Look once and end.")
@options.limit
@options.group_data
@click.option("--json", "json_wanted", is_flag=True, help="Print one look as JSON and end.")
def watch(
    inventory: str,
    every: float,
    once: bool,
    limit: tuple[str, ...],
    group_data: tuple[str, ...],
    json_wanted: bool,
) -> int:
    """Follow a rollout wave by wave and host by host, until Ctrl-C.

    It only looks: it may be started, ended and repeated at any time, also when nobody's rollout runs.
    """
    wanted = fleet.load(inventory, group_data=group_data, need_lock=False)
    with Hosts(inventory, limit, group_data) as hosts:
        if json_wanted or once:
            found = look(hosts, wanted)
            if json_wanted:
                click.echo(json.dumps([item.as_dict() for item in found], indent=2))
            else:
                console().print(table(found))
            return exit_code(found)
        follow = _on_screen if sys.stdout.isatty() else _as_lines
        with suppress(KeyboardInterrupt):  # how one ends it
            follow(hosts, wanted, every)
    return 0


def _on_screen(hosts: Hosts, wanted: Fleet, every: float) -> None:
    with Screen(table(look(hosts, wanted)), console=console(), refresh_per_second=4) as screen:
        while True:
            time.sleep(every)
            screen.update(table(look(hosts, wanted)))


def _as_lines(hosts: Hosts, wanted: Fleet, every: float) -> None:
    """Not a terminal: one line for each change."""
    known: set[str] = set()
    while True:
        told = {sentence(item) for item in look(hosts, wanted)}
        for line in sorted(told - known):
            click.echo(f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}")
        known = told
        time.sleep(every)
