"""A machine whose own speed changes over minutes: what the old release lost by itself is not the new one's
fault.
"""

from __future__ import annotations

import json
import lzma
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from bench_records import judge, record, request, row
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_vllm.on_host.bench.criteria import Criteria

RECORDED = Path(__file__).parents[1] / "fixtures/gate/h200-became-slower.json.xz"
FOR_SPEED = Criteria(quality=False)


def rounds(speeds: Sequence[float], numbers: Sequence[int] | None = None) -> dict[str, Any]:
    """A record of one stream with a round of two answers for each speed, 1.0 being 100 tokens/s."""
    requests, measured = [], []
    for number, speed in zip(numbers or range(len(speeds)), speeds, strict=True):
        answers = [
            request(f"p{number}-{each}", 0.05 / speed, 0.01 / speed, round=number) for each in range(2)
        ]
        requests += answers
        spent, tokens = (sum(item[key] for item in answers) for key in ("e2e_s", "output_tokens"))
        measured.append({"round": number, "duration_s": spent, "output_tokens": tokens, "complete": True})
    phase = {"name": "c1", "concurrency": 1, "requests": requests, "rounds": measured}
    return record({**phase, "duration_s": sum(item["duration_s"] for item in measured)})


def noisy(speed: float, count: int, seed: int = 0, spread: float = 0.01) -> list[float]:
    source = random.Random(seed)
    return [speed * math.exp(source.gauss(0, spread)) for _ in range(count)]


def test_two_equal_releases_on_a_gpu_host_that_became_slower_are_not_told_apart() -> None:
    recorded = json.loads(lzma.decompress(RECORDED.read_bytes()))
    verdict = judge(recorded["before"], recorded["after"], FOR_SPEED)
    assert verdict["verdict"] == "inconclusive"
    assert any("the old release itself was 21% slower for a while" in text for text in verdict["reasons"])


def test_a_slower_release_still_fails_on_a_machine_that_keeps_its_speed() -> None:
    before = rounds(noisy(1.0, 40))
    verdict = judge(before, rounds(noisy(0.85, 20, seed=1), range(39, 19, -1)), FOR_SPEED)
    assert verdict["verdict"] == "fail" and row(verdict, "tokens_per_s")["verdict"] == "fail"


def test_a_release_that_is_slower_than_its_machine_ever_was_still_fails() -> None:
    before = rounds(noisy(1.0, 30) + noisy(0.9, 10, seed=2))
    verdict = judge(before, rounds(noisy(0.6, 20, seed=1), range(39, 19, -1)), FOR_SPEED)
    assert verdict["verdict"] == "fail"


@pytest.mark.thorough
@given(
    seed=st.integers(0, 10_000),
    fell_to=st.floats(0.6, 0.9),
    long=st.integers(30, 80),
    measured=st.integers(10, 30),
)
def test_nothing_fails_for_being_as_slow_as_the_old_release_was_in_the_end(
    seed: int, fell_to: float, long: int, measured: int
) -> None:
    slow = long // 3
    before = rounds(noisy(1.0, long - slow, seed) + noisy(fell_to, slow, seed + 1))
    after = rounds(
        noisy(fell_to, measured, seed + 2), range(measured)
    )  # of its first rounds, when it was fast
    assert judge(before, after, FOR_SPEED)["verdict"] != "fail"
