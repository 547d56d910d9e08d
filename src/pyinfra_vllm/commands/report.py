"""`pyinfra-vllm report`: one HTML file about the fleet and its switches, to look at in the morning.

Changes no host.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from ..asking import Hosts
from ..errors import DeclarationError
from ..printable import printable
from ..report import looking
from ..report.history import problems
from ..report.page import render
from . import options
from .history import since_when
from .status import declared

NEWEST = 10  # about 30 kB of page each


@dataclass(frozen=True)
class Written:
    """The page that was written, and why hosts are missing on it."""

    report: str
    bytes: int
    missing: dict[str, str]


def run(
    inventory: str,
    out: Path,
    limit: Sequence[str] = (),
    group_data: Sequence[str] = (),
    newest: int = NEWEST,
    since: datetime | None = None,
) -> Written:
    """Ask the hosts and write the page. Raises DeclarationError."""
    wanted, problem = declared(inventory, group_data)
    with Hosts(inventory, limit, group_data) as hosts:
        path = _made(out) / "index.html"
        answers = hosts.ask(looking.at_report(wanted, newest))
    page = render(inventory, answers, datetime.now(UTC), problem, since=since)
    with _telling(out):
        path.write_text(page, encoding="utf-8")
    return Written(str(path), len(page.encode()), problems(answers))


def _made(out: Path) -> Path:
    """Create the folder and check that it is writable, before the hosts are asked."""
    with _telling(out):
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return out


@contextmanager
def _telling(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DeclarationError(
            f"--out {str(out)!r} can't be written to: {error.strerror}. Name another folder; no host was"
            " changed."
        ) from error


@click.command()
@options.inventory
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to."
)
@click.option(
    "--newest",
    type=click.IntRange(1),
    default=NEWEST,
    show_default=True,
    help="Switches of each service.",
)
@click.option(
    "--since", help="Begin of the headline's period: like yesterday, 7d or 2026-11-20 [last night]."
)
@options.limit
@options.group_data
@options.json_wanted
def report(
    inventory: str,
    out: Path,
    newest: int,
    since: str | None,
    limit: tuple[str, ...],
    group_data: tuple[str, ...],
    json_wanted: bool,
) -> int:
    """Write DIR/index.html: how the fleet is, every switch, what was measured, and the evidence behind it.

    The page loads nothing from anywhere. Exit code 1 when a host could not be asked: the page says which.
    """
    result = run(inventory, out, limit, group_data, newest, since_when(since))
    for host, problem in result.missing.items():
        click.echo(printable(f"{host}: {problem}"), err=True)
    click.echo(json.dumps(vars(result), indent=2) if json_wanted else result.report)
    return int(bool(result.missing))
