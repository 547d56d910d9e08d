"""The traffic of a service, from its own /metrics. Pure.

Prompt and answer lengths come from histograms, requests at a time from durations (Little's law).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pyinfra_vllm.on_host.openai.client import samples

PROMPTS, ANSWERS = "vllm:request_prompt_tokens", "vllm:request_generation_tokens"
DURATION = "vllm:e2e_request_latency_seconds"
STARTED = "process_start_time_seconds"
FEWEST = 20  # requests; fewer say nothing about traffic
# Requests at a time, on average: with so many, flags for `latency` cost more than they gain on the cards that
# were measured, and with so few, flags for `throughput` gain nothing (docs/tuning.md).
MANY, FEW = 8.0, 2.0

Samples = Mapping[str, float]


class NoTraffic(ValueError):
    """The metrics say nothing about traffic: the message says why."""


@dataclass(frozen=True)
class Traffic:
    """The requests of a while. Lengths are the histogram's, so only as exact as its buckets.

    + streams: requests at a time, on average over the whole while, idle hours included
    """

    requests: int
    seconds: float
    input_tokens: int  # the median
    input_tokens_p90: int
    output_tokens: int
    output_tokens_p90: int
    streams: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def gate(self) -> dict[str, Any]:
        """Settings of a gate that measures with prompts and answers as long as these."""
        lengths = sorted({self.input_tokens, self.input_tokens_p90})
        return {"prompt_tokens": lengths, "answer_tokens": max(2, self.output_tokens)}

    def doubt(self, objective: str) -> str:
        """Why this traffic and a service's objective don't belong together; empty where they may."""
        average = f"on average {self.streams:.1f} requests are served at a time, idle hours included"
        if objective == "latency" and self.streams >= MANY:
            return f"{average}, and `latency` is for few: try `balanced` or `throughput`"
        if objective == "throughput" and self.streams <= FEW:
            return f"{average}, and `throughput` is for many: try `balanced` or `latency`"
        return ""

    def __str__(self) -> str:
        return (
            f"{self.requests} requests: prompts of about {self.input_tokens} tokens (90 % below"
            f" {self.input_tokens_p90}), answers of about {self.output_tokens} (90 % below"
            f" {self.output_tokens_p90}), {self.streams:.1f} at a time"
        )


def traffic(later: str, seconds: float, earlier: str = "") -> Traffic:
    """The traffic between two answers of /metrics, or since the server's start. Raises NoTraffic."""
    if seconds <= 0:
        raise NoTraffic(f"{seconds:g} seconds apart: the second answer must be the later one")
    after, before = samples(later), samples(earlier)
    if before and before.get(STARTED) != after.get(STARTED):
        raise NoTraffic("the server was restarted between the two answers: its counters began anew")
    missing = [name for name in (PROMPTS, ANSWERS, DURATION) if f"{name}_count" not in after]
    if missing:
        raise NoTraffic(f"no {', '.join(missing)} in it: is it what vLLM answers at /metrics?")
    requests = round(_grown(f"{PROMPTS}_count", after, before))
    if requests < FEWEST:
        raise NoTraffic(f"{requests} requests say little: take the metrics after {FEWEST} at least")
    prompts, answers = _histogram(PROMPTS, after, before), _histogram(ANSWERS, after, before)
    return Traffic(
        requests=requests,
        seconds=seconds,
        input_tokens=quantile(prompts, 0.5),
        input_tokens_p90=quantile(prompts, 0.9),
        output_tokens=quantile(answers, 0.5),
        output_tokens_p90=quantile(answers, 0.9),
        streams=_grown(f"{DURATION}_sum", after, before) / seconds,
    )


def since_start(metrics: str, at: float) -> float:
    """Seconds from the server's start until `at` (Unix time). Raises NoTraffic."""
    started = samples(metrics).get(STARTED)
    if started is None:
        raise NoTraffic(f"no {STARTED} in it: is it what vLLM answers at /metrics?")
    return at - started


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> int:
    """The length below which this share lies, between the bounds of its bucket in proportion, as Prometheus'
    histogram_quantile does it; at least 1. In the last bucket, which has no end, it is where that begins.

    + buckets: (upper bound, how many are at most so long), by bound
    """
    wanted = share * buckets[-1][1]
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted and count > below:
            if math.isinf(bound):
                break
            return max(1, round(low + (bound - low) * (wanted - below) / (count - below)))
        low, below = (low if math.isinf(bound) else bound), count
    return max(1, round(low))


def _histogram(name: str, after: Samples, before: Samples) -> list[tuple[float, float]]:
    """Upper bounds and how many were at most so long, over all models and engines."""
    found: dict[float, float] = {}
    for key in after:
        if key.startswith(f"{name}_bucket{{"):
            bound = float(key.partition('le="')[2].partition('"')[0].replace("+Inf", "inf"))
            found[bound] = found.get(bound, 0.0) + _grown(key, after, before)
    return sorted(found.items())


def _grown(name: str, after: Samples, before: Samples) -> float:
    return after[name] - before.get(name, 0.0)
