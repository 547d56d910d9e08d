"""`pyinfra-vllm calibrate`: how noisy one unchanged service is, from several recorded runs of it.

Reads records that `bench` wrote, one after each restart of the same release; judges nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pyinfra_vllm.commands.records import read
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.on_host.calibration import calibration
from pyinfra_vllm.on_host.record import RecordError


def run(records: list[Path], out: Path | None = None) -> tuple[int, dict[str, Any]]:
    """The command: exit code and the noise, which `gate.judge` and `compare --noise` take. Raises DeclarationError."""
    try:
        noise = calibration([read(path) for path in records])
    except RecordError as error:
        names = ", ".join(str(path) for path in records)
        raise DeclarationError(f"{names} can't calibrate a gate: {error}") from error
    if out is not None:
        try:
            out.write_text(json.dumps(noise, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise DeclarationError(f"--out {out} can't be written: {error}") from error
    return 0, noise


def sentences(noise: dict[str, Any]) -> list[str]:
    """The noise for a person."""
    lines = [f"{noise['runs']} runs of an unchanged service; of two such runs 99 in 100 differ by less than:"]
    for phase, metrics in noise["phases"].items():
        lines += [f"  {phase} {metric}: {share:.2%}" for metric, share in metrics.items()]
    return lines


@click.command()
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the noise.")
@click.option("--json", "as_json", is_flag=True, help="Print the noise as JSON.")
def calibrate(records: tuple[Path, ...], out: Path | None, as_json: bool) -> int:
    """Find the noise of an unchanged service from at least three RECORDS, best with a restart before each.

    Make them with `bench --like FIRST`, so that all of them measured the same.
    """
    code, noise = run(list(records), out)
    click.echo(json.dumps(noise, indent=2) if as_json else "\n".join(sentences(noise)))
    return code
