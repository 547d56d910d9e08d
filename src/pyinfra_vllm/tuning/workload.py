"""The traffic of a service, from its own /metrics. Pure.

Prompt and answer lengths come from histograms, requests at a time from durations (Little's law).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pyinfra_vllm.on_host.openai.client import samples

PROMPTS, ANSWERS = "vllm:request_prompt_tokens", "vllm:request_generation_tokens"
DURATION = "vllm:e2e_request_latency_seconds"
STARTED = "process_start_time_seconds"
BOUND = re.compile(r'[{,]le="([^"]*)"')  # of a bucket
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

    def gate(self, max_model_len: int | None) -> dict[str, Any]:
        """Settings of a gate that measures with prompts and answers as long as these, and fit the context: a
        bucket may end beyond it.
        """
        answer_tokens = max(2, self.output_tokens)
        lengths = {self.input_tokens, self.input_tokens_p90}
        if max_model_len is not None:
            answer_tokens = max(2, min(answer_tokens, max_model_len - 1))
            lengths = {max(1, min(length, max_model_len - answer_tokens)) for length in lengths}
        return {"prompt_tokens": sorted(lengths), "answer_tokens": answer_tokens}

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


def answer(text: str) -> Samples:
    """An answer of /metrics that tells traffic. Raises NoTraffic, also for the page of an error."""
    found = samples(text)
    needed = {name: f"{name}_count" for name in (PROMPTS, ANSWERS)} | {DURATION: f"{DURATION}_sum"}
    missing = [name for name, key in needed.items() if key not in found]
    if STARTED not in found or missing:
        told = STARTED if STARTED not in found else ", ".join(missing)
        raise NoTraffic(f"no {told} in it: is it what vLLM answers at /metrics? Save it again")
    for name in (PROMPTS, ANSWERS):
        _histogram(name, found, {})
    return found


def traffic(after: Samples, seconds: float, before: Samples | None = None) -> Traffic:
    """The traffic between two answers of /metrics, or since the server's start. Raises NoTraffic.

    + after, before: the later and the earlier one, as `answer` has read them
    """
    if seconds <= 0:
        raise NoTraffic(f"{seconds:g} seconds apart: the second answer must be the later one")
    if before and before[STARTED] != after[STARTED]:
        raise NoTraffic("the server was restarted between the two answers: its counters began anew")
    before = before or {}
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


def since_start(metrics: Samples, at: float) -> float:
    """Seconds from the server's start until `at` (Unix time)."""
    return at - metrics[STARTED]


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
    """Upper bounds and how many were at most so long, over all models and engines. Raises NoTraffic."""
    found: dict[float, float] = {}
    for key in after:
        if key.startswith(f"{name}_bucket{{"):
            bound = _bound(name, key)
            found[bound] = found.get(bound, 0.0) + _grown(key, after, before)
    if math.inf not in found:
        raise NoTraffic(f"no buckets of {name} up to the last one, +Inf, in it: save it again, whole")
    return sorted(found.items())


def _bound(name: str, bucket: str) -> float:
    told = BOUND.search(bucket)
    try:
        bound = float(told[1]) if told else math.nan
    except ValueError:
        bound = math.nan
    if math.isnan(bound):
        raise NoTraffic(f"a bucket of {name} can't be read: {bucket[:200]}: save it again")
    return bound


def _grown(name: str, after: Samples, before: Samples) -> float:
    return after[name] - before.get(name, 0.0)
