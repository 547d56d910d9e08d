"""Watches a committed release under its real traffic: do tokens still flow, and do errors or preemptions pile up.

Looks and reports; rolling back or alerting is the caller's. `/health` answering 200 proves nothing here: requests that
run while not one token comes are a dead server.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .client import Client, ClientError
from .criteria import Criteria

EVERY_S = 5.0
LEAST_BUSY_S = 30.0  # busy time over which a throughput is worth comparing
SILENT_TRIES = 3  # reads of /metrics that may fail in a row
TOKENS = "vllm:generation_tokens_total"
PROMPTS = "vllm:prompt_tokens_total"
RUNNING = "vllm:num_requests_running"
PREEMPTIONS = "vllm:num_preemptions_total"
FINISHED = "vllm:request_success_total"


@dataclass
class Seen:
    """What the watch has added up so far."""

    first: dict[str, float]
    last: dict[str, float]
    last_at: float
    progress_at: float
    busy_s: float = 0.0
    busy_tokens: float = 0.0
    most_running: float = 0.0
    problems: list[str] = field(default_factory=list)

    def moved(self, name: str) -> float:
        return self.last.get(name, 0.0) - self.first.get(name, 0.0)


def soak(
    client: Client,
    criteria: Criteria,
    baseline: dict[str, Any] | None = None,
    progress: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Watch for `criteria.soak_s` seconds, or until something is wrong.

    + baseline: the gate's record of this release: its tokens/s at one stream is what traffic is held against

    Returns `{"verdict": "pass" | "fail", "reasons", "watched_s", "output_tokens", "errors", "preemptions"}`.
    Never raises: a server that can't be asked is a reason.
    """
    began = clock()
    start = _metrics(client)
    if start is None:
        return _result("fail", ["/metrics could not be read when the watch began"], None, 0.0)
    seen = Seen(first=start, last=start, last_at=began, progress_at=began)
    silent = 0
    while clock() - began < criteria.soak_s:
        sleep(min(EVERY_S, max(0.05, criteria.soak_s / 10)))
        found = _metrics(client)
        silent = 0 if found is not None else silent + 1
        if found is None and silent < SILENT_TRIES:
            continue
        if found is None:
            seen.problems.append(f"/metrics did not answer {SILENT_TRIES} times in a row")
        else:
            _take(seen, found, clock())
            seen.problems += _problems(seen, client, criteria, clock, began, baseline)
        if seen.problems:
            return _result("fail", seen.problems, seen, clock() - began)
        progress(
            f"soak: {seen.moved(TOKENS):.0f} tokens in {clock() - began:.0f} s, {seen.most_running:.0f} at once"
        )
    return _result("pass", [f"nothing wrong in {criteria.soak_s:.0f} s"], seen, clock() - began)


def _metrics(client: Client) -> dict[str, float] | None:
    try:
        found = client.metrics()
    except ClientError:
        return None
    return found if TOKENS in found else None


def _take(seen: Seen, found: dict[str, float], now: float) -> None:
    """Add one reading: time with requests under way counts as busy, and its tokens with it."""
    if found[TOKENS] < seen.last[TOKENS]:
        seen.problems.append("the token counter went back to zero: vLLM was restarted while it was watched")
    tokens = found[TOKENS] - seen.last[TOKENS]
    running = min(seen.last.get(RUNNING, 0.0), found.get(RUNNING, 0.0))
    if running > 0:
        seen.busy_s += now - seen.last_at
        seen.busy_tokens += tokens
    if tokens > 0 or found.get(RUNNING, 0.0) == 0:
        seen.progress_at = now
    seen.most_running = max(seen.most_running, found.get(RUNNING, 0.0))
    seen.last, seen.last_at = found, now


def _problems(
    seen: Seen,
    client: Client,
    criteria: Criteria,
    clock: Callable[[], float],
    began: float,
    baseline: dict[str, Any] | None,
) -> list[str]:
    found = []
    stalled = clock() - seen.progress_at
    if stalled >= criteria.soak_stall_s:
        state = "while /health says 200" if client.health() else "and /health fails too"
        found.append(f"requests ran for {stalled:.0f} s without one token, {state}")
    errors = _errors(seen)
    if errors > criteria.soak_max_errors:
        found.append(f"{errors:.0f} requests ended by an error, allowed are {criteria.soak_max_errors}")
    minutes = max((clock() - began) / 60, 1.0)
    rate = seen.moved(PREEMPTIONS) / minutes
    if rate > criteria.soak_max_preemptions_per_minute:
        allowed = criteria.soak_max_preemptions_per_minute
        found.append(f"{rate:.0f} preemptions a minute, allowed are {allowed:.0f}: the KV cache is too small")
    expected = _tokens_per_s(baseline) * (1 - criteria.soak_throughput_drop)
    if seen.busy_s >= LEAST_BUSY_S and seen.busy_tokens / seen.busy_s < expected:
        found.append(
            f"{seen.busy_tokens / seen.busy_s:.1f} tokens/s under real traffic, at least {expected:.1f} were expected"
            " (a share of what the gate measured at one stream)"
        )
    return found


def _errors(seen: Seen) -> float:
    """Requests that ended inside the server by an error: `vllm:request_success_total{finished_reason="error"}`."""
    return sum(
        value - seen.first.get(name, 0.0)
        for name, value in seen.last.items()
        if name.startswith(FINISHED + "{") and 'finished_reason="error"' in name
    )


def _tokens_per_s(record: dict[str, Any] | None) -> float:
    for phase in (record or {}).get("phases", []):
        if phase["concurrency"] == 1 and phase["duration_s"] > 0:
            tokens = sum(request["output_tokens"] for request in phase["requests"] if request["ok"])
            return float(tokens) / float(phase["duration_s"])
    return 0.0


def _result(verdict: str, reasons: list[str], seen: Seen | None, watched_s: float) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "reasons": reasons,
        "watched_s": round(watched_s, 1),
        "output_tokens": seen.moved(TOKENS) if seen else 0.0,
        "errors": _errors(seen) if seen else 0.0,
        "preemptions": seen.moved(PREEMPTIONS) if seen else 0.0,
    }
