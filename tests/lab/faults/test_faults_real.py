"""At least three cases of each class of faults on the real vLLM: `make test-faults` only, for each takes a
minute or two.

Left to the stub: releases that misbehave by themselves. A real vLLM that crashes, ends or hangs is made by
signals here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lab.session import Lab

from . import matrix
from .cases import Result, run_all
from .fleet import fleet
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
    "no-runtime-new": ("begin.done", "activate.intended", "ready.done"),
    "no-runtime-old": ("begin.done", "activate.intended", "ready.done"),
    "hang": ("activate.done", "ready.intended", "ready.done"),
    "hang-stop": ("measure-before.done", "window.done", "activate.intended"),
    "port-5": ("prove-way-forward.done", "window.done", "activate.intended"),
    "clock-ahead": DURING,
    "clock-back": DURING,
}
OPERATORS = ("begin.done", "activate.intended", "judge.done")
CASES = [
    *(Case(fault, point) for fault, points in CLASSES.items() for point in points),
    *(Case(fault, point, by="pyinfra") for fault in ("cable", "control") for point in OPERATORS),
]

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(
        os.environ.get("PYINFRA_VLLM_FAULTS") != "all", reason="more than an hour: make test-faults"
    ),
]


@pytest.fixture(scope="module")
def results(lab: Lab) -> Iterator[dict[str, Result]]:
    """Every case, on three hosts: a case waits as long as it computes, and two cores carry no more."""
    with fleet(lab, 0, 3, ("b",), real=True) as grounds:
        yield {str(result.case): result for result in run_all(grounds, CASES)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_lost_on_the_real_vllm(results: dict[str, Result], case: Case) -> None:
    assert results[str(case)].violations == []


def test_the_chapter_on_the_real_vllm_is_written(results: dict[str, Result]) -> None:
    matrix.add(matrix.OTHERS[0], matrix.real([results[str(case)] for case in CASES]))
    assert len(results) == len(CASES)
