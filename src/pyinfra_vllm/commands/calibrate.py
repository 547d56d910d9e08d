"""`pyinfra-vllm calibrate`: measures the noise of one unchanged service, below which no margin decides.

On a host it has the service measured across restarts, inside its window, and the host keeps the result; from
records that `bench` wrote, one after each restart of the same release, it only reckons. It judges nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyinfra_vllm.commands import options
from pyinfra_vllm.commands.files import record_in
from pyinfra_vllm.commands.one_service import followed, host_of, service_of, tell_on_stderr
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.on_host.bench.record import Record
from pyinfra_vllm.on_host.gate.calibration import calibration
from pyinfra_vllm.on_host.gate.noise import LEAST_RUNS, Noise
from pyinfra_vllm.on_host.state.values import RecordError
from pyinfra_vllm.printable import printable

if TYPE_CHECKING:
    from pyinfra_vllm.rollout.progress import Outcome

EXIT_CODES = {"calibrated": 0, "deferred": 4}


def run(records: list[Path], out: Path | None = None) -> Noise:
    """The noise of several records, for `gate.judge` and `compare --noise`.

    Raises DeclarationError.
    """
    for path in records:
        if len([other for other in records if other.resolve() == path.resolve()]) > 1:
            raise DeclarationError(f"{path} is named twice: the noise is what differs between runs")
    try:
        found = enumerate(map(record_in, records), 1)
        noise = calibration([Record.read(value, f"record {number}") for number, value in found])
    except RecordError as error:
        names = ", ".join(str(path) for path in records)
        raise DeclarationError(f"{names} can't calibrate a gate: {error}") from error
    if out is not None:
        try:
            out.write_text(json.dumps(noise.as_dict(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise DeclarationError(f"--out {out} can't be written: {error}") from error
    return noise


def on_host(
    inventory: str,
    limit: str,
    named: str | None,
    runs: int,
    overrides: Mapping[str, object],
    group_data: Sequence[str],
) -> Outcome:
    """Have one service of one host calibrated, and follow it.

    Raises DeclarationError before anything is touched.
    """
    from pyinfra_vllm import fleet
    from pyinfra_vllm.asking import Hosts
    from pyinfra_vllm.operations import calibration as calibrations
    from pyinfra_vllm.rollout.progress import Outcome

    wanted = fleet.load(inventory, overrides, group_data, limit=[limit], need_lock=False)
    declared = host_of(wanted, f"--limit {limit}")
    service = service_of(declared, named)
    tell_on_stderr()
    with followed(), Hosts(inventory, [declared.host], group_data) as hosts_asked:
        (answer,) = hosts_asked.ask(
            lambda host: calibrations.calibrate(host, declared.root, service, wanted.overrides, runs),
            limit_s=None,
        )
    return answer.value or Outcome(declared.host, service.name, "failed", answer.problem)


def sentences(noise: Noise) -> list[str]:
    """The noise for a person."""
    lines = [
        (
            f"{noise.runs} runs of an unchanged service; of two such runs the second is worse in 1 of 100"
            " by more than:"
        )
    ]
    for phase, metrics in noise.phases.items():
        lines += [f"  {phase} {metric}: {share:.2%}" for metric, share in metrics.items()]
    return lines


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="INVENTORY | RECORD...")
@click.option("--limit", metavar="HOST", help="The one host to calibrate.")
@click.option("--service", metavar="NAME", help="Which of its services, where it has several.")
@click.option(
    "--runs",
    type=click.IntRange(LEAST_RUNS, 30),
    default=5,
    show_default=True,
    help="How often to measure; there is a restart before each run but the first.",
)
@click.option("--now", is_flag=True, help="Also outside the service's window.")
@click.option("--reason", default="", help="Why, for the record.")
@options.group_data
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the noise of records."
)
@options.json_wanted
def calibrate(
    sources: tuple[str, ...],
    limit: str | None,
    service: str | None,
    runs: int,
    now: bool,
    reason: str,
    group_data: tuple[str, ...],
    out: Path | None,
    json_wanted: bool,
) -> int:
    """Find the noise of an unchanged service, and have its host keep it.

    With an INVENTORY and --limit, the host measures its service several times with restarts between, inside
    the service's window, and keeps the noise for its gate. With at least three RECORDs of `bench --like
    FIRST` it is reckoned here.
    """
    if len(sources) > 1 or sources[0].endswith(".json"):
        noise = run([Path(source) for source in sources], out)
        click.echo(json.dumps(noise.as_dict(), indent=2) if json_wanted else "\n".join(sentences(noise)))
        return 0
    if limit is None:
        raise click.UsageError("--limit HOST is needed: the service is restarted, so name the one host")
    overrides = {"switch_now": now, "reason": reason}
    outcome = on_host(sources[0], limit, service, runs, overrides, group_data)
    click.echo(
        json.dumps(asdict(outcome), indent=2)
        if json_wanted
        else printable(f"{outcome.status}: {outcome.message}")
    )
    return EXIT_CODES.get(outcome.status, 1)
