"""The criteria of a verdict in people's words and units, those that failed first.

Pure: from a verdict's metrics to text. It judges nothing again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..answers import Metric
from ..on_host.gate.verdict import FAIL, INCONCLUSIVE, Row
from ..text import gpu_memory, latency, percent, three_digits

Unit = Callable[[float], str]


def _rate(value: float) -> str:
    return f"{three_digits(value)} tokens/s"


def _of_100(value: float) -> str:
    return f"{three_digits(value)} of 100"


AT_LEAST, AT_MOST = "at least", "at most"
# Title of each criterion, unit of its values, and the side of its limit on which it passes.
CRITERIA: dict[str, tuple[str, Unit, str]] = {
    "tokens_per_s": ("Throughput", _rate, AT_LEAST),
    "min_tokens_per_s": ("Throughput", _rate, AT_LEAST),
    "ttft_s": ("Time to first token", latency, AT_MOST),
    "max_ttft_s": ("Time to first token", latency, AT_MOST),
    "ttft_p95_s": ("Time to first token, 95th percentile", latency, AT_MOST),
    "tpot_s": ("Time per output token", latency, AT_MOST),
    "e2e_s": ("Time of a whole answer", latency, AT_MOST),
    "error_rate": ("Failed requests", percent, AT_MOST),
    "gpu_memory_mib": ("GPU memory", gpu_memory, AT_MOST),
    "kernel": ("Kernel", three_digits, ""),
    "chat": ("Chat endpoint", three_digits, ""),
    "quality_points": ("Right answers", _of_100, ""),
    "right_share": ("Right answers", percent, AT_LEAST),
    "sane_share": ("Answers without degenerate output", percent, AT_LEAST),
    "form": ("Answers without a defect of form", _of_100, ""),
    "bits_per_byte": ("Bits per byte of fixed texts", three_digits, AT_MOST),
    "bits_per_byte_en": ("Bits per byte of English texts", three_digits, AT_MOST),
}
# Their limit is one of the ratio after / before; that of all others is in the unit of the values.
RELATIVE = ("tokens_per_s", "ttft_s", "ttft_p95_s", "tpot_s", "e2e_s", "bits_per_byte")
# The distribution that shows an absolute criterion.
SHOWN_BY = {"min_tokens_per_s": "tokens_per_s", "max_ttft_s": "ttft_s"}


@dataclass(frozen=True)
class Criterion:
    """One criterion as text.

    key: the metric and the phase of the distribution that shows it
    told: the gate's own sentence, which the reasons of a verdict are made of
    """

    title: str
    key: tuple[str, str]
    before: str
    after: str
    change: str
    interval: str
    allowed: str
    verdict: str
    decides: bool
    note: str
    told: str

    @property
    def failed(self) -> bool:
        return self.decides and self.verdict == FAIL

    @property
    def in_doubt(self) -> bool:
        return self.decides and self.verdict == INCONCLUSIVE

    @property
    def sentence(self) -> str:
        """The values in one line: `Throughput, 8 streams: 812 tokens/s before, 570 tokens/s after`."""
        values = [
            f"{value} {when}" for value, when in ((self.before, "before"), (self.after, "after")) if value
        ]
        values += filter(None, [self.change, self.allowed and f"allowed is {self.allowed}"])
        return f"{self.title}: {', '.join(values)}" if values else self.title


def criteria(metrics: Iterable[Metric]) -> list[Criterion]:
    """The criteria: failed ones first, then those in doubt, each in the order of the verdict."""
    found = [_criterion(metric) for metric in metrics]
    return sorted(found, key=lambda item: (not item.failed, not item.in_doubt, not item.decides))


def title(name: str, phase: str | None) -> str:
    """`Throughput, 8 streams`."""
    called = CRITERIA[name][0] if name in CRITERIA else name
    return f"{called}, {streams(phase)}" if phase else called


def streams(phase: str) -> str:
    """`8 streams` of phase `c8`."""
    number = re.fullmatch(r"c([0-9]{1,6})", phase)
    if number is None:
        return phase
    return "1 stream" if number[1] == "1" else f"{number[1]} streams"


def _criterion(metric: Metric) -> Criterion:
    name, phase = metric["name"], metric["phase"] or ""
    _, unit, _ = CRITERIA.get(name, ("", three_digits, ""))
    interval, allowed_by = metric.get("interval"), metric.get("allowed_by")
    would = f"{allowed_by} would allow it" if allowed_by else ""
    return Criterion(
        title=title(name, phase),
        key=(SHOWN_BY.get(name, name), phase),
        before="" if metric["before"] is None else unit(metric["before"]),
        after="" if metric["after"] is None else unit(metric["after"]),
        change=_change_of(metric, unit),
        interval=f"{_change(interval[0])} to {_change(interval[1])}" if interval else "",
        allowed="" if metric["limit"] is None else _allowed(name, metric["limit"]),
        verdict=metric["verdict"],
        decides=metric["decides"],
        note="; ".join(filter(None, (metric.get("note"), metric.get("doubt"), would))),
        told=_told(metric),
    )


def _told(metric: Metric) -> str:
    """Empty where the host's numbers do not belong together."""
    try:
        return Row.read(metric, "metric").sentence()
    except (LookupError, TypeError, ValueError):
        return ""


def _change_of(metric: Metric, unit: Unit) -> str:
    before, after, ratio = metric["before"], metric["after"], metric["ratio"]
    if unit is _of_100 and before is not None and after is not None:
        return f"{after - before:+.1f} points"
    return "" if ratio is None else _change(ratio)


def _change(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _allowed(name: str, limit: float) -> str:
    if name == "quality_points":
        return f"{AT_MOST} {three_digits(-limit)} points fewer"
    if name not in CRITERIA:
        return three_digits(limit)
    _, unit, side = CRITERIA[name]
    return f"{side} {_change(limit) if name in RELATIVE else unit(limit)}".strip()
