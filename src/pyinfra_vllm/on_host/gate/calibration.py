"""How far apart two runs of one unchanged service may be: from several runs, best with restarts between them.

Pure: records in, the noise that `gate.judge` takes out. Its caller stores it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ..bench.criteria import Criteria
from ..bench.record import Phase, Record
from ..bench.stats import T99, t_value
from ..state.values import RecordError
from .gate import incomparable
from .noise import LEAST_RUNS, Noise
from .pairing import check_pair
from .relative import compare


def calibration(records: Sequence[Record]) -> Noise:
    """The noise of one service, from several records of it.

    A share of 0.02 means: of two runs of an unchanged service the second is worse by more than 2 % in one
    case of 100. It is exp(t * s * sqrt(2)) - 1, with s the standard deviation of the logarithms between the
    runs and t Student's value for so few of them. Raises RecordError for fewer than three records or
    ones that do not compare: what other traffic did is no noise of the service.
    """
    if len(records) < LEAST_RUNS:
        raise RecordError(
            f"{len(records)} records: at least {LEAST_RUNS} runs are needed to see how they vary"
        )
    for number, record in enumerate(records[1:], 2):
        check_pair(records[0], record)
        for doubt in incomparable(records[0], record):
            raise RecordError(f"record 1 and record {number}: {doubt}")
    factor = t_value(len(records) - 1, T99) * math.sqrt(2)
    phases = {phase.name: _spread(phase, records, factor) for phase in records[0].phases}
    return Noise(len(records), phases)


def _spread(first: Phase, records: Sequence[Record], factor: float) -> dict[str, float]:
    """Metric -> noise of one phase. Every run is compared with the first, prompt by prompt."""
    logs: dict[str, list[float]] = {}
    for record in records:
        phase = next(item for item in record.phases if item.name == first.name)
        for row in compare(first, phase, Criteria(), {}, 0.0):
            if not row.ratio:  # a phase of which nothing was answered: its noise is not known
                continue
            logs.setdefault(row.name, []).append(math.log(row.ratio))
    return {
        metric: round(math.expm1(min(factor * statistics.stdev(values), 5.0)), 6)
        for metric, values in logs.items()
        if len(values) == len(records)
    }
