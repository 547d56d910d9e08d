"""Going back takes no longer than the old release takes to start: from the verdict to tokens, against a plain
restart.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime
from statistics import median

import pytest
from lab.session import Lab

from . import matrix
from .fleet import fleet
from .ground import Ground

REPEATS = 3
LIMIT = 1.1
CHAPTER = """A release on the real vLLM fails its gate, and the old one comes back: **{0:.2f} times** a plain restart of that old release, by the
medians of {3} of each, taking turns on one host. From the verdict to the old release's tokens {1}; `systemctl restart` to
tokens {2}.
"""  # noqa: E501

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        os.environ.get("PYINFRA_VLLM_FAULTS") != "all", reason="minutes of starts: make test-faults"
    ),
]


@pytest.fixture
def ground(lab: Lab) -> Iterator[Ground]:
    """A host on the real vLLM that serves release a."""
    with fleet(lab, 1, 0, ("b",), real=True) as (only,):
        only.back(only.releases["a"])
        yield only


def verdict_to_tokens(ground: Ground) -> float:
    """Seconds from the journal's verdict on the other release until the old one's tokens were heard."""
    never = {**ground.gate, "min_tokens_per_s": {"c1": 1e9}}
    ground.start(ground.releases["b"], criteria=never)
    ground.wait_over(180)
    judged = [entry for entry in ground.entries() if entry["step"] == "judge"][-1]
    assert judged["verdict"] == "fail"
    moment = datetime.fromisoformat(judged["at"]).timestamp() - time.time() + time.monotonic()
    return heard_again(ground, moment)


def plain_restart(ground: Ground) -> float:
    moment = time.monotonic()
    ground.inside("systemctl", "restart", "vllm-tiny.service")
    return heard_again(ground, moment)


def heard_again(ground: Ground, moment: float) -> float:
    """Seconds from the moment to the first answer after the silence that followed it."""
    assert ground.witness.hear(60) is not None
    (*_, (_, ends)) = ground.witness.gaps(moment, time.monotonic())
    return ends - moment


def test_from_the_verdict_to_tokens_is_hardly_longer_than_a_restart(ground: Ground) -> None:
    back, restart = [], []
    for _ in range(REPEATS):
        back.append(verdict_to_tokens(ground))
        restart.append(plain_restart(ground))
    ratio = median(back) / median(restart)
    matrix.add(matrix.OTHERS[1], CHAPTER.format(ratio, *map(_seconds, (back, restart)), REPEATS))
    assert ratio <= LIMIT, (back, restart)


def _seconds(values: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values) + " s"
