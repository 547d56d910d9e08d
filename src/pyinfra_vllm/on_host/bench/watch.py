"""Watches confounders of the probe: its own lateness, its processor time, and other traffic on the
server.

Observes and reports; what that means for a verdict is decided in the gate.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from ..openai.client import Client, ClientError
from . import scheduling

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
        """How much later than asked a sleeping thread of this process runs again: a reader is as late as
        that.
        """
        while not self._stop.is_set():
            asleep = time.perf_counter()
            time.sleep(BEAT_S)
            self._late.append(max(0.0, time.perf_counter() - asleep - BEAT_S))

    def _counters(self) -> dict[str, float] | None:
        try:
            return self._client.metrics()
        except ClientError:
            return None

    def client(self) -> dict[str, Any]:
        """The probe's own costs, in seconds: processor time, and how late its threads woke up, scheduled as
        they were.
        """
        late = sorted(self._late) or [0.0]
        return {
            "cpu_s": round(self._cpu_s, 3),
            "wall_s": round(self._wall_s, 3),
            "late_median_s": round(late[len(late) // 2], 6),
            "late_mean_s": round(sum(late) / len(late), 6),
            "late_p99_s": round(late[int(len(late) * 0.99)], 6),
            "scheduling": self._scheduling,
        }

    def traffic(self, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
        """Tokens of others: what the server counted beyond the probe's own.

        `known` is false without `/metrics`.
        """
        if self._before is None or self._after is None or COUNTERS["prompt_tokens"] not in self._after:
            return {"known": False}
        moved = {key: self._moved(name) for key, name in COUNTERS.items()}
        others = {
            "prompt_tokens": max(0.0, moved["prompt_tokens"] - prompt_tokens),
            "output_tokens": max(0.0, moved["output_tokens"] - output_tokens),
        }
        total = max(1.0, moved["prompt_tokens"] + moved["output_tokens"])
        return {
            "known": True,
            "tokens": total,
            "running_at_start": self._before.get(RUNNING, 0.0),
            "other_prompt_tokens": others["prompt_tokens"],
            "other_output_tokens": others["output_tokens"],
            "other_share": round(sum(others.values()) / total, 4),
            "preemptions": moved["preemptions"],
        }

    def _moved(self, name: str) -> float:
        assert self._before is not None and self._after is not None
        return self._after.get(name, 0.0) - self._before.get(name, 0.0)


def both(first: dict[str, Any] | None, second: dict[str, Any]) -> dict[str, Any]:
    """Combines the watched values of two parts of one measurement, the probe's costs or the traffic."""
    if not first or not second.get("known", True) or not first.get("known", True):
        return second
    if "wall_s" not in first:
        return _traffic_of_both(first, second)
    share = first["wall_s"] / max(1e-9, first["wall_s"] + second["wall_s"])
    return {
        "cpu_s": round(first["cpu_s"] + second["cpu_s"], 3),
        "wall_s": round(first["wall_s"] + second["wall_s"], 3),
        "late_median_s": max(first["late_median_s"], second["late_median_s"]),
        "late_mean_s": round(share * first["late_mean_s"] + (1 - share) * second["late_mean_s"], 6),
        "late_p99_s": max(first["late_p99_s"], second["late_p99_s"]),
        "scheduling": second["scheduling"],
    }


def _traffic_of_both(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    sums = {
        key: first[key] + second[key]
        for key in ("tokens", "other_prompt_tokens", "other_output_tokens", "preemptions")
    }
    others = sums["other_prompt_tokens"] + sums["other_output_tokens"]
    return {**first, **sums, "other_share": round(others / max(1.0, sums["tokens"]), 4)}
