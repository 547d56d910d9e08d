"""Watches a committed release under its real traffic: generation, errors and preemptions.

Looks and reports; rolling back or alerting is the caller's. A 200 from `/health` does not show generation,
and counters that stand still have two causes: no requests, or no answers. The watch then sends a request.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..bench.criteria import Criteria
from ..bench.record import Record
from ..openai.client import Client, ClientError, HttpError
from .verdict import FAIL, INCONCLUSIVE, PASS

EVERY_S = 5.0
ASK_S = 30.0  # how long a token may take that the watch asks for itself
LEAST_BUSY_S = 30.0  # busy time over which a throughput is worth comparing
UNANSWERED_TRIES = 3  # reads of /metrics that may fail in a row
TOKENS = "vllm:generation_tokens_total"
PROMPTS = "vllm:prompt_tokens_total"
RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
PREEMPTIONS = "vllm:num_preemptions_total"
FINISHED = "vllm:request_success_total"
HTTP = "http_requests_total"  # of prometheus_fastapi_instrumentator, which groups the codes: status="5xx"
Metrics = dict[str, float]


class NoMetrics(Exception):
    """The server answers, and not with vLLM's counters: there is nothing to watch it by."""


@dataclass(frozen=True)
class Watched:
    """The result of a watch, as the journal has it."""

    verdict: str
    reasons: list[str]
    watched_s: float
    output_tokens: float
    errors: float
    preemptions: float


@dataclass
class Seen:
    """The sums of the watch so far."""

    first: Metrics
    last: Metrics
    last_at: float
    progress_at: float
    busy_s: float = 0.0
    busy_tokens: float = 0.0
    busy_prompts: float = 0.0
    busy_now: bool = False
    most_running: float = 0.0
    problems: list[str] = field(default_factory=list)

    def moved(self, name: str) -> float:
        return self.last.get(name, 0.0) - self.first.get(name, 0.0)


def soak(
    client: Client,
    criteria: Criteria,
    baseline: Record | None = None,
    progress: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Watched:
    """Watch for `criteria.soak_s` seconds, or until something is wrong.

    + baseline: the gate's record of this release: what real traffic gets is held against its single stream

    The verdict is `inconclusive` where the server has no counters to watch: that is no reason to roll
    back, and the operator must know. Never raises: a server that can't be asked is a reason.
    """
    watch = _Watch(client, criteria, baseline, clock, sleep)
    try:
        return watch.run(progress)
    except NoMetrics as error:
        return _result(INCONCLUSIVE, [str(error)], watch.seen, clock() - watch.began)


class _Watch:
    """One watch under way."""

    def __init__(
        self,
        client: Client,
        criteria: Criteria,
        baseline: Record | None,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self.client = client
        self.criteria = criteria
        self.single = _Single.of(baseline)
        self.clock = clock
        self.sleep = sleep
        self.every_s = min(EVERY_S, max(0.05, criteria.soak_s / 10))
        self.began = clock()
        self.seen: Seen | None = None

    def run(self, progress: Callable[[str], None]) -> Watched:
        start = self._read()
        if start is None:
            return self._ended(FAIL, ["/metrics could not be read when the watch began"])
        seen = self.seen = Seen(first=start, last=start, last_at=self.clock(), progress_at=self.clock())
        while self.clock() - self.began < self.criteria.soak_s:
            self.sleep(self.every_s)
            found = self._read()
            if found is None:
                return self._ended(FAIL, [f"/metrics did not answer {UNANSWERED_TRIES} times in a row"])
            _take(seen, found, self.clock())
            seen.problems += self._problems(seen)
            if seen.problems:
                return self._ended(FAIL, seen.problems)
            progress(
                f"soak: {seen.moved(TOKENS):.0f} tokens in {self.clock() - self.began:.0f} s,"
                f" {seen.most_running:.0f} at once"
            )
        stalled = "" if seen.moved(TOKENS) else self._stalled(seen)
        if stalled:
            return self._ended(FAIL, [stalled])
        return self._ended(PASS, [f"nothing wrong in {self.criteria.soak_s:.0f} s"])

    def _read(self) -> Metrics | None:
        """The counters; None where a few tries got no answer.

        Raises NoMetrics for an answer without vLLM's.
        """
        for tries in range(UNANSWERED_TRIES):
            if tries:
                self.sleep(self.every_s)
            try:
                found = self.client.metrics()
            except HttpError as error:
                if 400 <= error.status < 500:
                    raise NoMetrics(f"/metrics answers {error}, so nobody watches this release") from error
                continue
            except ClientError:  # it may be busy for a moment; the next try shows
                continue
            if TOKENS not in found:
                raise NoMetrics(f"/metrics has no {TOKENS}, so nobody watches this release")
            return found
        return None

    def _problems(self, seen: Seen) -> list[str]:
        found = []
        if self.clock() - seen.progress_at >= self.criteria.soak_stall_s:
            found.append(self._stalled(seen))
        errors = _errors(seen)
        if errors > self.criteria.soak_max_errors:
            found.append(
                f"{errors:.0f} requests ended by an error, allowed are {self.criteria.soak_max_errors}"
            )
        rate = seen.moved(PREEMPTIONS) / max((self.clock() - self.began) / 60, 1.0)
        allowed = self.criteria.soak_max_preemptions_per_minute
        if rate > allowed:
            found.append(
                f"{rate:.0f} preemptions a minute, allowed are {allowed:.0f}: the KV cache is too small"
            )
        found.append(self.single.too_slow(seen, 1 - self.criteria.soak_throughput_drop))
        return [problem for problem in found if problem]

    def _stalled(self, seen: Seen) -> str:
        """Ask for a token where none was counted for a while.

        Why the server counts as dead; empty where a token came.
        """
        stalled = self.clock() - seen.progress_at
        try:
            self.client.check_generation(min(ASK_S, self.criteria.soak_stall_s))
        except ClientError as error:
            state = "while /health says 200" if self.client.health() else "and /health fails too"
            whose = "requests were under way" if seen.busy_now else "nobody asked"
            return (
                f"{whose} for {stalled:.0f} s without one token, {state}; asked for one, it gave none"
                f" ({error})"
            )
        seen.progress_at = self.clock()
        return ""

    def _ended(self, verdict: str, reasons: list[str]) -> Watched:
        return _result(verdict, reasons, self.seen, self.clock() - self.began)


def _take(seen: Seen, found: Metrics, now: float) -> None:
    """Add one reading: time with requests under way or waiting counts as busy, and its tokens with it."""
    if found[TOKENS] < seen.last[TOKENS]:
        seen.problems.append("the token counter went back to zero: vLLM was restarted while it was watched")
    tokens = found[TOKENS] - seen.last[TOKENS]
    prompts = found.get(PROMPTS, 0.0) - seen.last.get(PROMPTS, 0.0)
    seen.busy_now = _under_way(found) > 0
    if seen.busy_now and _under_way(seen.last) > 0:
        seen.busy_s += now - seen.last_at
        seen.busy_tokens += tokens
        seen.busy_prompts += prompts
    if tokens > 0 or prompts > 0:
        seen.progress_at = now
    seen.most_running = max(seen.most_running, found.get(RUNNING, 0.0))
    seen.last, seen.last_at = found, now


def _under_way(metrics: Metrics) -> float:
    """Requests that the server has and did not answer yet. A dead scheduler leaves them all waiting."""
    return metrics.get(RUNNING, 0.0) + metrics.get(WAITING, 0.0)


def _errors(seen: Seen) -> float:
    """Requests that ended by an error of the server: `finished_reason="error"`, or an answer of 5xx.

    The engine's errors become such answers, where none has begun; so the larger of the two counts all.
    """
    engine = _moved_where(seen, FINISHED, 'finished_reason="error"')
    return max(engine, _moved_where(seen, HTTP, 'status="5'))


def _moved_where(seen: Seen, name: str, label: str) -> float:
    return sum(
        value - seen.first.get(key, 0.0)
        for key, value in seen.last.items()
        if key.startswith(name + "{") and label in key
    )


@dataclass(frozen=True)
class _Single:
    """The cost of one stream when the gate measured it: the unit in which real traffic is expressed.

    output_s: seconds per output token, all included
    prompt_s: seconds per prompt token, for prompts longer than the gate's own beside their answers
    prompts: prompt tokens per output token of the gate's own requests
    """

    output_s: float = 0.0
    prompt_s: float = 0.0
    prompts: float = 0.0

    @classmethod
    def of(cls, record: Record | None) -> _Single:
        for phase in record.phases if record else ():
            if phase.concurrency != 1 or not phase.answered:
                continue
            made = sum(request.output_tokens for request in phase.answered)
            read = sum(request.input_tokens for request in phase.answered)
            return cls(
                output_s=phase.duration_s / made,
                prompt_s=sum(request.ttft_s for request in phase.answered) / max(1, read),
                prompts=read / made,
            )
        return cls()

    def too_slow(self, seen: Seen, share: float) -> str:
        """Whether the busy time gave less than that share of one stream's rate; empty where it did not.

        Long prompts with short answers are work too, of which few output tokens come.
        """
        if seen.busy_s < LEAST_BUSY_S or seen.busy_tokens <= 0 or not self.output_s:
            return ""
        longer = max(0.0, seen.busy_prompts - self.prompts * seen.busy_tokens)
        needed_s = self.output_s * seen.busy_tokens + self.prompt_s * longer
        if needed_s >= share * seen.busy_s:
            return ""
        expected = share * seen.busy_tokens / needed_s
        return (
            f"{seen.busy_tokens / seen.busy_s:.1f} tokens/s under real traffic, at least {expected:.1f} were"
            " expected (a share of what the gate measured at one stream)"
        )


def _result(verdict: str, reasons: list[str], seen: Seen | None, watched_s: float) -> Watched:
    return Watched(
        verdict=verdict,
        reasons=reasons,
        watched_s=round(watched_s, 1),
        output_tokens=seen.moved(TOKENS) if seen else 0.0,
        errors=_errors(seen) if seen else 0.0,
        preemptions=seen.moved(PREEMPTIONS) if seen else 0.0,
    )
