"""How far two runs of one unchanged service may be apart, as a calibration found it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..bench.criteria import EVERY_PHASE, ONE_STREAM
from ..state.values import RecordError, amount, count, mapping, named, required, shown

SCHEMA = "pyinfra-vllm/noise/1"
LEAST_RUNS = 3  # to see how they vary


@dataclass(frozen=True)
class Noise:
    """The noise of a service over so many runs.

    phases: phase -> metric -> share: of two runs of an unchanged service the second is worse by more than
        that in one case of 100
    """

    runs: int
    phases: Mapping[str, Mapping[str, float]]

    @classmethod
    def read(cls, value: Any, name: str) -> Noise:
        """The noise that `calibrate` wrote. Raises RecordError naming the place in it.

        + name: how messages call it
        """
        mapping()(value, name)
        if required(value, "schema", name) != SCHEMA:
            raise RecordError(
                f"{name}.schema is {shown(value['schema'])}, not {SCHEMA!r}: give what `pyinfra-vllm"
                " calibrate` wrote"
            )
        count(required(value, "runs", name), f"{name}.runs")
        named(named(amount))(required(value, "phases", name), f"{name}.phases")
        return cls(value["runs"], value["phases"])

    def as_dict(self) -> dict[str, object]:
        return {"schema": SCHEMA, "runs": self.runs, "phases": self.phases}

    def __str__(self) -> str:
        """The noise in one sentence, of the metrics that the gate decides by."""
        parts = [
            f"{phase} {metric} {share:.1%}"
            for phase, metrics in self.phases.items()
            for metric, share in metrics.items()
            if metric in EVERY_PHASE or (phase == "c1" and metric in ONE_STREAM)
        ]
        return (
            f"{self.runs} runs; of two such runs the second is worse in 1 of 100 by more than:"
            f" {', '.join(parts)}"
        )


def of_phase(noise: Noise | None, phase: str) -> Mapping[str, float]:
    """Metric -> share; nothing where the phase is not calibrated."""
    return noise.phases.get(phase, {}) if noise else {}
