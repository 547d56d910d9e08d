"""Shared by `calibrate` and `tune`, which restart one service of one host and follow that."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.printable import printable

if TYPE_CHECKING:
    from pyinfra_vllm.config import Declared, Fleet, Service


def host_of(fleet: Fleet, limit: str) -> Declared:
    """The one host that a run is about. Raises DeclarationError where it is about several.

    + limit: how the operator named it
    """
    selected = fleet.selected or tuple(fleet.hosts)
    if len(selected) != 1:
        hosts = ", ".join(selected) or "no host"
        raise DeclarationError(
            f"{limit} means {hosts}: one host at a time, as its service is restarted; name it with --limit."
            " No host was contacted."
        )
    return fleet.hosts[selected[0]]


def service_of(declared: Declared, named: str | None) -> Service:
    """The service of that name, or the only one. Raises DeclarationError."""
    found = [service for service in declared.services if named in (None, service.name)]
    if len(found) != 1:
        names = ", ".join(service.name for service in declared.services) or "no service"
        raise DeclarationError(f"{declared.host} has {names}: name one by --service. No host was contacted.")
    return found[0]


@contextmanager
def followed() -> Iterator[None]:
    """Ctrl-C ends the command, never what the host has begun: that is said then."""
    from pyinfra_vllm.rollout.progress import PROGRESS

    try:
        yield
    except KeyboardInterrupt:
        for line in PROGRESS.under_way():
            click.echo(line, err=True)
        raise


def tell_on_stderr() -> None:
    """Have the messages of operations printed, as pyinfra's own command does."""
    logging.getLogger("pyinfra").addHandler(_ToStderr(logging.INFO))
    logging.getLogger("pyinfra").setLevel(logging.INFO)


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(printable(record.getMessage()), err=True)
