"""A case counts only once its fault struck: a gate that went back before is no fault, and not for ever."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from . import cases
from .ground import NeverStruck
from .table import Case

CASE = Case("kill", "judge.done")


@pytest.mark.parametrize(("missed", "begun", "violations"), [(0, 1, 0), (2, 3, 0), (9, cases.TRIES, 1)])
def test_a_case_whose_fault_never_struck_begins_again(
    monkeypatch: pytest.MonkeyPatch, missed: int, begun: int, violations: int
) -> None:
    tries = []

    class Run:
        def __init__(self, *_: Any) -> None:
            tries.append(1)

        def run(self) -> None:
            if len(tries) <= missed:
                raise NeverStruck("the switch ended before: rolled_back, slow")

    monkeypatch.setattr(cases, "_Run", Run)
    monkeypatch.setattr(cases, "_make_good", lambda ground, result: None)
    ground: Any = SimpleNamespace(host=SimpleNamespace(name="f0"))
    result = cases.run_case(ground, CASE)
    assert (len(tries), result.never_struck, len(result.violations)) == (begun, begun - 1, violations)
