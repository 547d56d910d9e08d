"""How far apart two runs of one unchanged service may be: from several runs, best with restarts between them.

Pure: records in, the noise that `gate.judge` takes out. Whoever calls it stores it.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

from ..bench.criteria import EVERY_PHASE, ONE_STREAM, Criteria
from ..bench.record import RecordError, check, check_pair
from ..bench.stats import T99, t_value
from ..state.values import amount, count, mapping, required, shown, word
from .gate import incomparable
from .relative import compare

SCHEMA = "pyinfra-vllm/noise/1"
LEAST_RUNS = 3
Record = dict[str, Any]


def calibration(records: list[Record]) -> dict[str, Any]:
    """`{"schema", "runs", "phases": {phase: {metric: share}}}`.

    A share of 0.02 means: of two runs of an unchanged service the second is worse by more than 2 % in one
    case of 100. It is exp(t * s * sqrt(2)) - 1, with s the standard deviation of the logarithms between the
    runs and t Student's value for so few of them. Raises RecordError for fewer than three records, damaged
    ones, or ones that do not compare: what other traffic did is no noise of the service.
    """
    if len(records) < LEAST_RUNS:
        raise RecordError(
            f"{len(records)} records: at least {LEAST_RUNS} runs are needed to see how they vary"
        )
    for number, record in enumerate(records, 1):
        check(record, f"record {number}")
        if number > 1:
            check_pair(records[0], record)
            for doubt in incomparable(records[0], record):
                raise RecordError(f"record 1 and record {number}: {doubt}")
    factor = t_value(len(records) - 1, T99) * math.sqrt(2)
    phases = {
        phase["name"]: _spread(number, records, factor) for number, phase in enumerate(records[0]["phases"])
    }
    return {"schema": SCHEMA, "runs": len(records), "phases": phases}


def _spread(number: int, records: list[Record], factor: float) -> dict[str, float]:
    """Metric -> noise of one phase. Every run is compared with the first, prompt by prompt."""
    name = records[0]["phases"][number]["name"]
    logs: dict[str, list[float]] = {}
    for record in records:
        phase = next(item for item in record["phases"] if item["name"] == name)
        for row in compare(records[0]["phases"][number], phase, Criteria(), {}, 0.0):
            if not row["ratio"]:  # a phase of which nothing was answered: its noise is not known
                continue
            logs.setdefault(row["name"], []).append(math.log(row["ratio"]))
    return {
        metric: round(math.expm1(min(factor * statistics.stdev(values), 5.0)), 6)
        for metric, values in logs.items()
        if len(values) == len(records)
    }


def checked(noise: Any, name: str) -> dict[str, Any]:
    """The noise itself, once it is shown to be what `calibration` makes.

    Raises RecordError naming the place in it.

    + name: how messages call it
    """
    mapping()(noise, name)
    if required(noise, "schema", name) != SCHEMA:
        raise RecordError(
            f"{name}.schema is {shown(noise['schema'])}, not {SCHEMA!r}: give what `pyinfra-vllm calibrate`"
            " wrote"
        )
    count(required(noise, "runs", name), f"{name}.runs")
    mapping()(required(noise, "phases", name), f"{name}.phases")
    for phase, metrics in noise["phases"].items():
        word(phase, f"a name in {name}.phases")
        mapping()(metrics, f"{name}.phases.{phase}")
        for metric, share in metrics.items():
            word(metric, f"a name in {name}.phases.{phase}")
            amount(share, f"{name}.phases.{phase}.{metric}")
    return dict(noise)


def spoken(noise: dict[str, Any]) -> str:
    """The noise in one sentence, of what the gate decides by."""
    parts = [
        f"{phase} {metric} {share:.1%}"
        for phase, metrics in noise["phases"].items()
        for metric, share in metrics.items()
        if metric in EVERY_PHASE or (phase == "c1" and metric in ONE_STREAM)
    ]
    return (
        f"{noise['runs']} runs; of two such runs the second is worse in 1 of 100 by more than:"
        f" {', '.join(parts)}"
    )
