"""Watches confounders of the probe: its own lateness, its processor time, and others' traffic.

Observes and reports; what that means for a verdict is decided in the gate.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from ..openai.client import Client, ClientError
from . import scheduling
from .record import Costs, Traffic

BEAT_S = 0.01
COUNTERS = {
    "prompt_tokens": "vllm:prompt_tokens_total",
    "output_tokens": "vllm:generation_tokens_total",
    "preemptions": "vllm:num_preemptions_total",
}
RUNNING = "vllm:num_requests_running"


class Watch:
    """Watches from `with` to the end of its block, then `client()` and `traffic()` say what was seen."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stop = threading.Event()
        self._late: list[float] = []
        self._beats = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Watch:
        self._before = self._counters()
        self._cpu = time.process_time()
        self._began = time.perf_counter()
        self._scheduling = scheduling.current()
        self._beats.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._beats.join()
        self._wall_s = time.perf_counter() - self._began
        self._cpu_s = time.process_time() - self._cpu
        self._after = self._counters()

    def _beat(self) -> None:
        """Measures how much later than asked a sleeping thread wakes up: the probe's readers are as late."""
        while not self._stop.is_set():
            asleep = time.perf_counter()
            time.sleep(BEAT_S)
            self._late.append(max(0.0, time.perf_counter() - asleep - BEAT_S))

    def _counters(self) -> dict[str, float] | None:
        try:
            return self._client.metrics()
        except ClientError:
            return None

    def client(self) -> Costs:
        """The probe's own costs, scheduled as its threads were."""
        late = sorted(self._late) or [0.0]
        return Costs(
            cpu_s=round(self._cpu_s, 3),
            wall_s=round(self._wall_s, 3),
            late_median_s=round(late[len(late) // 2], 6),
            late_mean_s=round(sum(late) / len(late), 6),
            late_p99_s=round(late[int(len(late) * 0.99)], 6),
            scheduling=self._scheduling,
        )

    def traffic(self, prompt_tokens: int, output_tokens: int) -> Traffic:
        """Tokens of others: those that the server counted beyond the probe's own."""
        if self._before is None or self._after is None or COUNTERS["prompt_tokens"] not in self._after:
            return Traffic(known=False)
        prompts, answers, preemptions = (
            self._after.get(name, 0.0) - self._before.get(name, 0.0) for name in COUNTERS.values()
        )
        others = max(0.0, prompts - prompt_tokens), max(0.0, answers - output_tokens)
        total = max(1.0, prompts + answers)
        return Traffic(
            tokens=total,
            running_at_start=self._before.get(RUNNING, 0.0),
            other_prompt_tokens=others[0],
            other_output_tokens=others[1],
            other_share=round(sum(others) / total, 4),
            preemptions=preemptions,
        )


def costs_of_both(first: Costs | None, second: Costs) -> Costs:
    """The probe's costs over two parts of one measurement."""
    if first is None:
        return second
    share = first.wall_s / max(1e-9, first.wall_s + second.wall_s)
    return Costs(
        cpu_s=round(first.cpu_s + second.cpu_s, 3),
        wall_s=round(first.wall_s + second.wall_s, 3),
        late_median_s=max(first.late_median_s, second.late_median_s),
        late_mean_s=round(share * first.late_mean_s + (1 - share) * second.late_mean_s, 6),
        late_p99_s=max(first.late_p99_s, second.late_p99_s),
        scheduling=second.scheduling,
    )


def traffic_of_both(first: Traffic | None, second: Traffic) -> Traffic:
    """The traffic over two parts of one measurement; that of the second where one of them is not known."""
    if first is None or not first.known or not second.known:
        return second
    tokens = first.tokens + second.tokens
    prompts = first.other_prompt_tokens + second.other_prompt_tokens
    answers = first.other_output_tokens + second.other_output_tokens
    return replace(
        first,
        tokens=tokens,
        other_prompt_tokens=prompts,
        other_output_tokens=answers,
        other_share=round((prompts + answers) / max(1.0, tokens), 4),
        preemptions=first.preemptions + second.preemptions,
    )
