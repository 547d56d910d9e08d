"""`pyinfra-vllm compare`: the gate's verdict on two benchmark records. Measures nothing, touches nothing."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.table import Column, Table

from pyinfra_vllm.commands.files import criteria_of, record_in
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.on_host.bench.record import Record
from pyinfra_vllm.on_host.gate import gate
from pyinfra_vllm.on_host.gate.noise import Noise
from pyinfra_vllm.on_host.gate.verdict import Verdict
from pyinfra_vllm.on_host.state.values import RecordError
from pyinfra_vllm.printable import printable
from pyinfra_vllm.report.tables import console, escape
from pyinfra_vllm.text import four_digits

COLORS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def run(
    before: Path, after: Path, gate_file: Path | None = None, noise_file: Path | None = None
) -> tuple[int, Verdict]:
    """The command: exit code (0 pass, 1 fail, 3 inconclusive) and the verdict.

    Raises DeclarationError.
    """
    criteria = criteria_of(gate_file)
    noise = _noise(noise_file) if noise_file else None
    try:
        early, late = record_in(before), record_in(after)
        second, first = Record.read(late, "after"), Record.read(early, "before")
        verdict = gate.judge(first, second, criteria, noise=noise, asks_gpus=False)
    except RecordError as error:
        raise DeclarationError(f"{before} and {after} can't be compared: {error}") from error
    return gate.EXIT_CODES[verdict.verdict], verdict


def _noise(path: Path) -> Noise:
    try:
        return Noise.read(record_in(path), "noise")
    except RecordError as error:
        raise DeclarationError(f"--noise {path}: {error}") from error


def table(verdict: Verdict) -> Table:
    """Every metric for a person; dim ones are shown and never decide."""
    names = ("phase", "metric", "before", "after", "ratio", "95 % interval", "limit", "verdict")
    columns = (Column(name, overflow="fold") for name in names)
    found = Table(*columns, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for row in verdict.metrics:
        shown = row.verdict if row.decides else "informational"
        found.add_row(
            escape(row.phase or ""),
            escape(row.name),
            four_digits(row.before),
            four_digits(row.after),
            four_digits(row.ratio),
            "{:.3f} to {:.3f}".format(*row.interval) if row.interval else "",
            four_digits(row.limit),
            f"[{COLORS.get(shown, 'dim')}]{shown}[/]",
            style=None if row.decides else "dim",
        )
    return found


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--gate", "gate_file", type=click.Path(path_type=Path), help="The gate's settings, YAML or JSON."
)
@click.option(
    "--noise", "noise_file", type=click.Path(path_type=Path), help="The noise that `calibrate` wrote."
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def compare(before: Path, after: Path, gate_file: Path | None, noise_file: Path | None, as_json: bool) -> int:
    """Judge AFTER against BEFORE: exit code 0 for pass, 1 for fail, 3 for inconclusive."""
    code, verdict = run(before, after, gate_file, noise_file)
    if as_json:
        click.echo(json.dumps(verdict.as_dict(), indent=2))
        return code
    console().print(table(verdict))
    click.echo(verdict.verdict)
    for reason in verdict.reasons:
        click.echo(f"  {printable(reason)}")
    return code
