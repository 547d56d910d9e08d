"""The state of this host's services as Prometheus metrics, for the textfile collector of node_exporter.

A unit of its own writes them (operations/program.py): nothing that goes wrong here can disturb a switch. It
only reads what `observe` reads. A name is one of METRICS, a label a name or an id: there are no secrets.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ..state.paths import UNITS
from ..state.transactions import CALIBRATION, without_service_s
from . import systemd

FILE, DOCTORS_FILE = "pyinfra-vllm.prom", "pyinfra-vllm-doctor.prom"
WRITER = "pyinfra-vllm-recover-due.service"  # its text says whether metrics are written, and where
VERB = " metrics --to "
MODE = 0o644  # node_exporter has a user of its own
LONGEST_LABEL = 100  # characters

# name -> what it says. All of them are gauges, and all but the last are of one `service`.
METRICS = {
    "pyinfra_vllm_release_info": "The release that is current: its id, model, commit and vLLM version.",
    "pyinfra_vllm_release_since_timestamp_seconds": "When the switch to the current release ended.",
    "pyinfra_vllm_release_proven": "1 where the current release runs and passed its gate, else 0.",
    "pyinfra_vllm_release_differs": "1 where the running process is of another release than the current one.",
    "pyinfra_vllm_service_running": "1 where the service has a process, else 0.",
    "pyinfra_vllm_last_switch_info": "The newest switch or calibration; no outcome while it has no end.",
    "pyinfra_vllm_last_switch_began_timestamp_seconds": "When the newest switch began.",
    "pyinfra_vllm_last_switch_ended_timestamp_seconds": "When the newest switch ended.",
    "pyinfra_vllm_last_switch_without_service_seconds": "How long the newest switch left no release serving.",
    "pyinfra_vllm_switch_unfinished": "1 while the newest switch has no end, else 0.",
    "pyinfra_vllm_rejected_releases": "How many releases are not tried again as they are.",
    "pyinfra_vllm_metrics_written_timestamp_seconds": "When these metrics were written.",
}
WRITTEN = "pyinfra_vllm_metrics_written_timestamp_seconds"
# What `pyinfra-vllm doctor` found, in a file of its own: it is asked for from elsewhere, and more seldom.
FAILED, ENDED = "pyinfra_vllm_doctor_check_failed", "pyinfra_vllm_doctor_ended_timestamp_seconds"
DOCTORS_METRICS = {
    FAILED: "1 for each check that failed; none where all is well.",
    ENDED: "When the checks ended.",
}
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ESCAPES = {"\\": r"\\", '"': r"\"", "\n": r"\n"}

Found = Mapping[str, Any]


class Sample(NamedTuple):
    """One line: the metric's name, its labels, its value."""

    name: str
    labels: dict[str, str]
    value: float


def render(services: Iterable[Found], now: float) -> str:
    """The metrics as text.

    + services: what `observe` says of each
    + now: Unix time
    """
    samples = [sample for found in services for sample in _samples(found)]
    samples.append(Sample(WRITTEN, {}, now))
    return _exposed(METRICS, samples)


def render_doctors(failed: Iterable[str], now: float) -> str:
    """The names of the checks that failed as metrics.

    + now: Unix time
    """
    samples = [Sample(FAILED, {"check": name}, 1.0) for name in failed]
    return _exposed(DOCTORS_METRICS, [*samples, Sample(ENDED, {}, now)])


def _exposed(metrics: Mapping[str, str], samples: list[Sample]) -> str:
    """The text format of Prometheus."""
    return "".join(
        f"# HELP {name} {words}\n# TYPE {name} gauge\n" + "".join(_line(s) for s in samples if s.name == name)
        for name, words in metrics.items()
    )


def _samples(found: Found) -> Iterator[Sample]:
    """The metrics of one service. An unknown time or state is left out."""
    service = {"service": _text(found, "service")}
    current, running = found.get("current"), found.get("running")
    last, rejected = found.get("last") or {}, found.get("rejected")
    states: dict[str, float] = {
        "release_proven": float(_runs(found, current)),
        "release_differs": float(None not in (current, running) and current != running),
        "service_running": float(running is not None),
    }
    values: dict[str, float | None] = {
        "release_since_timestamp_seconds": _since(found),
        "last_switch_began_timestamp_seconds": _seconds(last.get("began")),
        "last_switch_ended_timestamp_seconds": _seconds(last.get("ended")),
        "last_switch_without_service_seconds": without_service(last),
        "switch_unfinished": float(bool(last) and last.get("ended") is None),
        "rejected_releases": float(len(rejected)) if isinstance(rejected, Mapping) else None,
        **(states if current or running else {}),  # of what is only staged nothing should run
    }
    if current is not None:
        yield Sample("pyinfra_vllm_release_info", {**service, **_release(found)}, 1.0)
    if last:
        labels = {key: _text(last, key) for key in ("purpose", "outcome", "verdict", "from", "to")}
        yield Sample("pyinfra_vllm_last_switch_info", {**service, **labels}, 1.0)
    for name, value in values.items():
        if value is not None:
            yield Sample(f"pyinfra_vllm_{name}", service, value)


def _runs(found: Found, current: object) -> bool:
    return current is not None and current == found.get("running") == found.get("proven")


def _release(found: Found) -> dict[str, str]:
    return {
        "release": _text(found, "current"),
        "model": _text(found, "release", "checkpoint", "repo"),
        "commit": _text(found, "release", "checkpoint", "commit"),
        "runtime": _text(found, "release", "runtime", "version"),
    }


def _since(found: Found) -> float | None:
    """When the current release was switched to; None where no record says."""
    committed = [
        record
        for record in found.get("history") or ()
        if record.get("outcome") == "committed" and record.get("to") == found.get("current")
    ]
    return _seconds(committed[-1].get("ended")) if committed else None


def without_service(record: Found) -> float | None:
    """How many seconds a switch that ended left no release serving: from the stop of the old one until the
    new one generated tokens, and likewise for the rollback.

    0 where nothing was touched, or nothing served before; None while it has no end, and for a calibration,
    whose restarts `observe` does not tell.
    """
    if record.get("ended") is None or record.get("purpose") == CALIBRATION:
        return None
    if record.get("from") is None:
        return 0.0
    return round(without_service_s(record.get("turns", {}), record["ended"]) or 0.0, 3)


def _seconds(at: object) -> float | None:
    """Unix time of a journal's time; None for anything else."""
    try:
        return datetime.fromisoformat(at).timestamp() if isinstance(at, str) else None
    except (ValueError, OverflowError):
        return None


def _text(value: Any, *keys: str) -> str:
    """The text below these keys; empty where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else ""


def _line(sample: Sample) -> str:
    labels = ",".join(f'{name}="{_escaped(text)}"' for name, text in sample.labels.items())
    return f"{sample.name}{{{labels}}} {sample.value!r}\n" if labels else f"{sample.name} {sample.value!r}\n"


def _escaped(text: str) -> str:
    """A label's value as the format wants it, control characters replaced: journal texts are foreign."""
    plain = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text[:LONGEST_LABEL])
    return "".join(_ESCAPES.get(character, character) for character in plain)


def write(directory: Path, text: str, name: str = FILE) -> Path:
    """Replace the file in one step. Raises OSError.

    The directory may belong to node_exporter's user: so no link in it is ever followed. Nothing is synced,
    since the next run replaces it.
    """
    path = directory / name
    partial = directory / f".{name}.partial"  # the collector reads *.prom only
    with suppress(FileNotFoundError):
        partial.unlink()
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), MODE)
        file.write(text)
    partial.replace(path)
    return path


def written_here(units: Path = UNITS) -> bool:
    """Whether the host's declaration asks for the file."""
    try:
        return VERB in (units / WRITER).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def write_soon(units: Path = UNITS) -> None:
    """After a switch: have the unit write them now, where it does; no failure is more than a line."""
    if not written_here(units):
        return
    try:
        systemd.start_in_background(WRITER)
    except (systemd.SystemdError, OSError) as error:
        print(f"the metrics are written by the timer's next run, not now: {error}", file=sys.stderr)


def main(argv: list[str]) -> int:
    """Write what `doctor` found: DIRECTORY FAILED, the second a JSON list of the names of failed checks."""
    try:
        write(Path(argv[0]), render_doctors(json.loads(argv[1]), time.time()), DOCTORS_FILE)
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
