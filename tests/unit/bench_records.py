"""Benchmark records made by hand, for the tests of what reads them."""

from __future__ import annotations

import random
from typing import Any

from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.record import Record
from pyinfra_vllm.on_host.gate import gate
from pyinfra_vllm.on_host.gate.noise import SCHEMA, Noise


def request(
    prompt: str, ttft_s: float = 0.05, tpot_s: float = 0.01, tokens: int = 101, **more: Any
) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "ok": True,
        "ttft_s": ttft_s,
        "e2e_s": ttft_s + tpot_s * (tokens - 1),
        "input_tokens": 256,
        "output_tokens": tokens,
        **more,
    }


def failed(prompt: str, kind: str = "http_500", error: str = "HTTP 500: boom") -> dict[str, Any]:
    return {"prompt": prompt, "ok": False, "kind": kind, "error": error}


def phase(
    concurrency: int = 1, count: int = 20, slower: float = 1.0, noise: float = 0.0, seed: int = 0
) -> dict[str, Any]:
    """Closed loop: the phase lasts as long as its requests, one after another in each of `concurrency`
    streams.
    """
    source = random.Random(seed)
    requests = [
        request(
            f"p{number:03d}", 0.05 * slower * _wobble(source, noise), 0.01 * slower * _wobble(source, noise)
        )
        for number in range(count)
    ]
    duration = sum(item["e2e_s"] for item in requests) / concurrency
    return {
        "name": f"c{concurrency}",
        "concurrency": concurrency,
        "duration_s": duration,
        "requests": requests,
    }


def _wobble(source: random.Random, noise: float) -> float:
    return float(2.718281828 ** source.gauss(0, noise))


def record(*phases: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "schema": "pyinfra-vllm/bench/1",
        "model": "m",
        "server": {"version": "0.32.0"},
        "phases": list(phases) or [phase()],
        "quality": [],
        **more,
    }


def graded(right: int, total: int, key: str = "q") -> list[dict[str, Any]]:
    return [{"prompt": f"{key}{number:03d}", "passed": number < right} for number in range(total)]


def judge(
    before: Any, after: Any, criteria: Criteria | None = None, noise: Any = None, **more: Any
) -> dict[str, Any]:
    """The verdict on two records, by the default criteria, as its JSON has it."""
    known = None if noise is None else Noise.read({"schema": SCHEMA, **noise}, "noise")
    second = Record.read(after, "after")
    first = None if before is None else Record.read(before, "before")
    return gate.judge(first, second, criteria or Criteria(), known, **more).as_dict()


def row(verdict: dict[str, Any], name: str, phase_name: str | None = "c1") -> dict[str, Any]:
    (found,) = [item for item in verdict["metrics"] if item["name"] == name and item["phase"] == phase_name]
    return found
