"""`pyinfra-vllm tune`: tunes one service on its host, or shows what would be tried on each card, and when."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import click

from pyinfra_vllm import fleet
from pyinfra_vllm.config import Service
from pyinfra_vllm.errors import DeclarationError, one_line
from pyinfra_vllm.rollout.plans import host_names
from pyinfra_vllm.tune import Plan, lines, planned
from pyinfra_vllm.tuning import workload
from pyinfra_vllm.tuning.workload import NoTraffic, Traffic

from . import options, tune_run
from .windows import moment

WIDTH_WITHOUT_TERMINAL = 120


def run(
    inventory: str, at: datetime, limit: Sequence[str] = (), group_data: Sequence[str] = ()
) -> list[tuple[list[str], Service, Plan | None]]:
    """The hosts, declaration and plan of each service, alike ones together. Raises as `fleet.load` does."""
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
@click.option(
    "--plan", "only_plan", is_flag=True, help="Only show what would be tried, and when; ask no host."
)
@click.option("--dry", is_flag=True, help="Ask the host where its tuning stands, and change nothing.")
@click.option(
    "--service", "named", metavar="NAME", help="Which of the host's services, where it has several."
)
@click.option("--now", is_flag=True, help="Also outside the service's window.")
@click.option("--anew", is_flag=True, help="From the first trial on, whatever is known.")
@click.option("--reason", default="", help="Why, for the record.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for a page about the tuning."
)
@click.option(
    "--at", "at_text", metavar="TIME", help="With --plan: plan from this time on instead of from now."
)
@click.option(
    "--metrics",
    "metrics_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --plan: the service's answer at /metrics, saved; a second, later one limits it to the time"
    " between them.",
)
@options.json_wanted
def tune(
    inventory: str,
    limit: tuple[str, ...],
    group_data: tuple[str, ...],
    only_plan: bool,
    dry: bool,
    named: str | None,
    now: bool,
    anew: bool,
    reason: str,
    out: Path | None,
    at_text: str | None,
    metrics_files: tuple[Path, ...],
    json_wanted: bool,
) -> int:
    """Try configurations on the service's own card, inside its window, and write the best one as a profile.

    The host tries one after the other against what serves, and goes back after each; the same command goes on
    where it was, another night too. --plan shows for each service what is worth trying, what rules the others
    out, and how many nights it takes.

    Exits with 4 where the window closes before the search is done, with 1 where it had to stop, or where a
    declaration can't work as it is.
    """
    if only_plan and (dry or now or anew or reason or out or named):
        raise click.UsageError(
            "--plan asks no host: leave out --dry, --now, --anew, --reason, --out and --service"
        )
    if not only_plan and (at_text or metrics_files):
        raise click.UsageError("--at and --metrics go with --plan")
    if not only_plan:
        overrides = {"switch_now": now, "reason": reason}
        ran = tune_run.run(inventory, limit, named, overrides, group_data, dry=dry, anew=anew, out=out)
        if json_wanted:
            click.echo(json.dumps(tune_run.as_dict(ran), indent=2))
        else:
            tune_run.show(ran, dry=dry)
        return ran.exit_code
    found = run(inventory, moment(at_text, "UTC"), limit, group_data)
    seen = _traffic(metrics_files, len(found)) if metrics_files else None
    if json_wanted:
        answers = [_as_dict(hosts, service, plan) for hosts, service, plan in found]
        if seen:
            service = found[0][1]
            gate, doubt = seen.gate(service.max_model_len), seen.doubt(service.objective)
            answers[0] |= {"traffic": seen.as_dict(), "gate": gate, "doubt": doubt}
        click.echo(json.dumps({"services": answers}, indent=2))
    else:
        for hosts, service, plan in found:
            _show(hosts, service, plan)
        if seen:
            _show_traffic(seen, found[0][1])
    return int(any(plan is not None and plan.space.current.errors for _, _, plan in found))


def _traffic(files: Sequence[Path], services: int) -> Traffic:
    """The traffic of the one service that is shown. A file's time of change is when it was saved."""
    if services > 1:
        raise click.UsageError(
            f"--metrics is of one service, and {services} are shown: choose one with --limit"
        )
    if len(files) > 2:
        raise click.UsageError(f"--metrics takes one file, or an earlier and a later one, not {len(files)}")
    answers = []
    for file in files:
        with _telling(file):
            text = file.read_text(encoding="utf-8", errors="replace")
            answers.append((workload.answer(text), file.stat().st_mtime))
    *earlier, (later, at) = answers
    with _telling(files[-1]):
        if earlier:
            return workload.traffic(later, at - earlier[0][1], earlier[0][0])
        return workload.traffic(later, workload.since_start(later, at))


@contextmanager
def _telling(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, NoTraffic) as error:
        raise DeclarationError(f"--metrics {file}: {one_line(error)}") from error


def _show_traffic(seen: Traffic, service: Service) -> None:
    gate = json.dumps(seen.gate(service.max_model_len))
    click.echo(f"Traffic: {seen}")
    click.echo(f'To be judged and tuned with such requests, declare "gate": {gate}')
    if doubt := seen.doubt(service.objective):
        click.echo(f"Warning: {doubt}")


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
