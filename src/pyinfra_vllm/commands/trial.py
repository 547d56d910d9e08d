"""`pyinfra-vllm trial`: measures the declared release on the canary's hosts, which all go back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import click
from rich.console import Console
from rich.table import Table

from .. import deploying, fleet
from ..asking import Hosts
from ..on_host.bench.criteria import MOST_STARTS
from ..on_host.gate.gate import EXIT_CODES
from ..on_host.gate.verdict import FAIL, INCONCLUSIVE, PASS
from ..on_host.switch.order import TRIAL
from ..printable import printable
from ..report import looking
from ..report.evidence import Shown
from ..report.history import problems, switches
from ..report.page import shown_switches
from ..report.status import rows
from ..report.tables import console, escape
from . import options

PUT_OFF = 4
COLOURS = {PASS: "green", FAIL: "red", INCONCLUSIVE: "yellow"}


@dataclass(frozen=True)
class Tried:
    """The trials of this run, and why a host's are missing.

    deployed: the exit code of deploy.py
    waiting: `host service` of each whose declared release is another than its current one
    """

    trials: list[Shown]
    deployed: int
    missing: dict[str, str]
    waiting: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """1 for a fail, 3 for a doubt; else that of deploy.py. Where nothing was tried: 1 if a host could not
        be asked, 4 if something waits for its trial.
        """
        found = [item.switch.verdict for item in self.trials]
        worst = next((verdict for verdict in (FAIL, INCONCLUSIVE) if verdict in found), None)
        if worst:
            return EXIT_CODES[worst]
        if found or self.deployed:
            return self.deployed
        return 1 if self.missing else PUT_OFF if self.waiting else 0

    @property
    def nothing(self) -> str:
        """Why there is no trial, for people."""
        if self.deployed or self.missing:
            return "Nothing was tried: what deploy.py said is above."
        if self.waiting:
            return (
                f"Nothing was tried: deploy.py put off {', '.join(self.waiting)}, which serve what they"
                " served. Wait for the window, or add --now."
            )
        return "There is nothing to try: what is declared serves already."

    def as_dict(self) -> dict[str, object]:
        return {
            "exit_code": self.exit_code,
            "trials": [
                {
                    **item.switch.as_dict(),
                    "changes": [asdict(change) for change in item.changes or ()],
                    "criteria": [asdict(criterion) for criterion in item.criteria],
                    "reasons": list(item.reasons),
                    "without_service_s": item.away_s,
                }
                for item in self.trials
            ],
            "missing": self.missing,
            "waiting": list(self.waiting),
        }


def run(
    inventory: str,
    limit: Sequence[str] = (),
    group_data: Sequence[str] = (),
    *,
    now: bool = False,
    reason: str | None = None,
    restarts: int | None = None,
) -> Tried:
    """Run deploy.py as a trial, then read what its hosts recorded.

    Raises DeclarationError or LockError before any host is contacted.

    + now: also outside of the windows
    + reason: why, for the record
    + restarts: the starts of each side that are measured in turns; None is what the gate declares
    """
    data: dict[str, object] = {"trial": True}
    if now:
        data["switch_now"] = True
    if reason:
        data["reason"] = reason
    if restarts:
        data["gate"] = {"restarts": restarts}
    words = deploying.command(inventory, limit, group_data, data)
    wanted = fleet.load(inventory, data, group_data, limit=limit)
    with Hosts(inventory, limit, group_data) as hosts:
        known = {item.tx for item in switches(hosts.ask(looking.at_history(newest=1)))}
    code = deploying.run(words)
    with Hosts(inventory, limit, group_data) as hosts:
        answers = hosts.ask(looking.at_report(wanted, newest=1))
    new = [item for item in shown_switches(answers) if item.switch.tx not in known]
    trials = [item for item in new if item.switch.purpose == TRIAL]
    trials.sort(key=lambda item: (item.switch.host, item.switch.service))
    waiting = [
        f"{row.host} {row.service}" for row in rows(answers) if row.declared not in (None, row.current)
    ]
    return Tried(trials, code, problems(answers), tuple(waiting))


@click.command()
@options.inventory
@click.option("--now", is_flag=True, help="Also outside the services' windows.")
@click.option("--reason", metavar="TEXT", help="Why, for the record.")
@click.option(
    "--restarts",
    type=click.IntRange(1, MOST_STARTS),
    help="Starts of each side that are measured in turns, with standby.",
)
@options.limit
@options.group_data
@options.json_wanted
def trial(
    inventory: str,
    now: bool,
    reason: str | None,
    restarts: int | None,
    limit: tuple[str, ...],
    group_data: tuple[str, ...],
    json_wanted: bool,
) -> int:
    """Measure the declared release on the canary's hosts, or on those of --limit, and go back whatever it is.

    Nothing is accepted or rejected by it. Without standby it costs two restarts. Exit code 0 where every
    verdict is pass or nothing is to be tried, 1 for a fail, 3 for a doubt, 4 where the window is closed.
    """
    tried = run(inventory, limit, group_data, now=now, reason=reason, restarts=restarts)
    if json_wanted:
        click.echo(json.dumps(tried.as_dict(), indent=2))
        return tried.exit_code
    screen = console()
    for item in tried.trials:
        _show(screen, item)
    if not tried.trials:
        click.echo(printable(tried.nothing), err=True)
    for host, problem in tried.missing.items():
        click.echo(printable(f"{host}: {problem}"), err=True)
    return tried.exit_code


def _show(screen: Console, item: Shown) -> None:
    """Verdict, what differs from the release that serves, and each criterion."""
    switch = item.switch
    verdict = switch.verdict or "no verdict"
    screen.print(
        f"{escape(switch.host)} {escape(switch.service)}: release {escape(switch.new)} against"
        f" {escape(switch.old or 'none')}: [{COLOURS.get(verdict, 'dim')}]{escape(verdict)}[/]"
    )
    for change in item.changes or ():
        screen.print(
            f"  {escape(change.name)}: {escape(change.before or '-')} -> {escape(change.after or '-')}"
        )
    if item.criteria:
        screen.print(_table(item))
    for reason in item.reasons or filter(None, [switch.reason]):
        screen.print(f"  {escape(reason)}")


def _table(item: Shown) -> Table:
    """The criteria that decide; the report has the others, too."""
    found = Table("criterion", box=None, pad_edge=False)
    for name in ("before", "after", "change, 95 %", "verdict"):
        found.add_column(name, no_wrap=True)
    for row in item.criteria:
        if row.decides:
            cells = map(escape, (row.title, row.before, row.after, row.interval or row.change))
            found.add_row(*cells, f"[{COLOURS.get(row.verdict, 'dim')}]{escape(row.verdict)}[/]")
    return found
