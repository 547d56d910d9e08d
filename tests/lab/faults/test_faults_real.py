"""At least three cases of each class of faults on the real vLLM: `make test-faults` only, for each takes a minute or two.

Left to the stub: runtimes deleted (the lab's only real one is shared, read-only, by all hosts) and releases that misbehave by
themselves (a real vLLM that hangs or ends is made by signals here).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lab.session import Lab

from .cases import run_case
from .fleet import fleet
from .ground import Ground
from .table import Case

DURING = ("measure-before.intended", "activate.done", "judge.done")
CLASSES = {
    **{
        name: DURING
        for name in ("kill", "torn", "power", "full", "stale-lock", "second-operator", "crash", "exit-0")
    },
    "kill-children": ("prove-way-back.intended", "activate.intended", "kernel.intended"),
    "read-only": ("begin.done", "activate.intended", "judge.done"),
    "hang-a-while": ("begin.done", "ready.done", "commit.done"),
    **{
        f"{how}-new": ("begin.done", "activate.intended", "judge.done")
        for how in ("truncated", "flipped", "deleted")
    },
    "port": ("prove-way-forward.done", "window.done", "activate.intended"),
    "clock-ahead": DURING,
    "clock-back": DURING,
}
OPERATORS = ("begin.done", "activate.intended", "judge.done")
CASES = [
    *(Case(fault, point) for fault, points in CLASSES.items() for point in points),
    *(Case(fault, point, by="pyinfra") for fault in ("cable", "control") for point in OPERATORS),
]

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        os.environ.get("PYINFRA_VLLM_FAULTS") != "all", reason="more than an hour: make test-faults"
    ),
]


@pytest.fixture(scope="module")
def ground(lab: Lab) -> Iterator[Ground]:
    """One host at a time on the real vLLM: two cores carry no more."""
    with fleet(lab, 0, 1, ("b",), real=True) as (only,):
        yield only


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_lost_on_the_real_vllm(ground: Ground, case: Case) -> None:
    assert run_case(ground, case).violations == []
