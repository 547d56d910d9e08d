"""`pyinfra-vllm schedule`: the timer of the control machine for rollouts that nobody watches."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from .. import fleet
from ..printable import printable
from ..schedule.environment import checked
from ..schedule.tick import tick as ticked
from ..schedule.units import EVERY, Units, cron_line, daily, install, units
from . import options


def own_command(
    inventory: str, limit: tuple[str, ...], group_data: tuple[str, ...] = (), doctor: bool = False
) -> list[str]:
    """The timer's command: this program by its whole path."""
    beside = Path(sys.executable).parent / "pyinfra-vllm"
    program = [str(beside)] if beside.is_file() else [sys.executable, "-m", "pyinfra_vllm"]
    limits = [word for host in limit for word in ("--limit", host)]
    beyond = [word for path in group_data for word in ("--group-data", path)]
    words = ["doctor", inventory] if doctor else ["schedule", inventory, "--tick"]
    return [*program, *words, *limits, *beyond]


def account() -> str | None:
    """For root: who will run it (whoever called sudo, as the SSH keys are theirs).

    None: the user's own systemd.
    """
    return (os.environ.get("SUDO_USER") or "root") if os.geteuid() == 0 else None


@click.command()
@options.inventory
@click.option("--install", "installing", is_flag=True, help="Write the units and start the timer.")
@click.option("--tick", is_flag=True, help="Run by the timer: roll out every host that is due.")
@click.option("--dry", is_flag=True, help="With --tick: only say what would be run.")
@click.option(
    "--every", default=5, show_default=True, help=f"Minutes between ticks: {', '.join(map(str, EVERY))}."
)
@click.option("--doctor", metavar="HH:MM", help="Also a timer that runs `doctor` each day at this time.")
@click.option(
    "--environment-file",
    type=click.Path(path_type=Path),
    help="File with HF_TOKEN and declared secrets, for systemd.",
)
@options.limit
@options.group_data
@options.json_wanted
def schedule(
    inventory: str,
    installing: bool,
    tick: bool,
    dry: bool,
    every: int,
    doctor: str | None,
    environment_file: Path | None,
    limit: tuple[str, ...],
    group_data: tuple[str, ...],
    json_wanted: bool,
) -> int:
    """Print the systemd timer and service for unattended rollouts, or --install them.

    Every few minutes the timer runs `schedule --tick`: while all windows are closed no host is contacted;
    inside one, pyinfra is run for the hosts whose declared release does not run. Exit codes are `pyinfra`'s.
    """
    if (tick and installing) or (dry and not tick):
        raise click.UsageError("--tick goes without --install, and --dry with --tick")
    if tick:
        return _tick(inventory, limit, group_data, dry, json_wanted)
    # A timer of a broken one rolls nothing out.
    fleet.load(inventory, group_data=group_data, limit=limit, need_lock=False)
    command = own_command(inventory, limit, group_data)
    secrets = environment_file and checked(environment_file, account())
    made = [units(inventory, command, Path.cwd(), every, account(), secrets)]
    if doctor:
        checkup = own_command(inventory, limit, group_data, doctor=True)
        made.append(daily(inventory, checkup, Path.cwd(), doctor, account()))
    ran = [words for each in made for words in install(each)] if installing else []
    cron = cron_line(command, Path.cwd(), every)
    if json_wanted:
        result = {"files": _files(made), "installed": bool(ran), "ran": ran, "cron": cron}
        click.echo(json.dumps(result, indent=2))
    else:
        _print(made, ran, cron)
    return 0


def _tick(
    inventory: str, limit: tuple[str, ...], group_data: tuple[str, ...], dry: bool, json_wanted: bool
) -> int:
    done = ticked(
        inventory,
        limit,
        datetime.now(UTC),
        lambda line: click.echo(printable(line), err=True),
        dry=dry,
        group_data=group_data,
    )
    click.echo(json.dumps(done.as_dict(), indent=2) if json_wanted else printable(done.said))
    return done.exit_code


def _files(made: list[Units]) -> dict[str, str]:
    return {str(each.directory / name): text for each in made for name, text in each.files.items()}


def _print(made: list[Units], ran: list[list[str]], cron: str) -> None:
    for path, text in _files(made).items():
        click.echo(f"# {path}\n{text}")
    if ran:
        timers = [f"{each.name}.timer" for each in made]
        listed = " ".join(made[0].systemctl("list-timers", *timers))
        click.echo(f"Installed; the timer runs. See it: {listed}")
    else:
        click.echo("# Nothing was written: --install does. The same for a crontab:\n# " + cron)
