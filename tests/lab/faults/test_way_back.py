"""Going back takes no longer than the old release takes to start: from the verdict to tokens, against a plain restart."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime
from statistics import median

import pytest
from lab.session import Lab

from .fleet import fleet
from .ground import Ground

START_S = 20  # as long as the real vLLM takes here for its smallest model; real ones take minutes
REPEATS = 3
LIMIT = 1.1

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        os.environ.get("PYINFRA_VLLM_FAULTS") != "all", reason="minutes of starts: make test-faults"
    ),
]


@pytest.fixture
def ground(lab: Lab) -> Iterator[Ground]:
    with fleet(lab, 1, 0, ("b", "slow-start", "slow-kernel")) as (only,):
        only.ready_timeout_s = 60
        only.back(only.releases["slow-start"])
        yield only


def verdict_to_tokens(ground: Ground) -> float:
    """Seconds from the journal's verdict until the old release's tokens were heard."""
    ground.start(ground.releases["slow-kernel"])
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
    assert ground.watch.hear(60) is not None
    (*_, (_, ends)) = ground.watch.gaps(moment, time.monotonic())
    return ends - moment


def test_from_the_verdict_to_tokens_is_hardly_longer_than_a_restart(ground: Ground) -> None:
    back, restart = [], []
    for _ in range(REPEATS):
        back.append(verdict_to_tokens(ground))
        restart.append(plain_restart(ground))
    print(f"verdict to tokens {back}, plain restart {restart}, ratio {median(back) / median(restart):.3f}")
    assert median(back) <= LIMIT * median(restart), (back, restart)
