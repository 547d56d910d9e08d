"""The fault table with standby: every step of a switch in which the old release sleeps, broken in every way.

`PYINFRA_VLLM_FAULTS=all` runs the whole of it, else a sample. The card is a stand-in for nvidia-smi, and the
server the stub of vLLM, whose engine sleeps, wakes and fails as it is told.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lab.session import Lab

from . import matrix
from .cases import Result, needs_disk, run_all
from .fleet import fleet
from .table import STANDBY, STANDBY_SAMPLE, Case

EVERYTHING = os.environ.get("PYINFRA_VLLM_FAULTS") == "all"
CHOSEN = STANDBY if EVERYTHING else STANDBY_SAMPLE
# A switch with its turns takes 19 s on a host of its own, and 30 s where three share two cores.
# Another lab runs beside the sample.
HOSTS = 2 if EVERYTHING else 1

pytestmark = [pytest.mark.full, pytest.mark.timeout(6000 if EVERYTHING else 1800)]


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, lab: Lab) -> Iterator[dict[str, Result]]:
    """The cases that this run asks for."""
    items = [item for item in request.session.items if item.module is request.module]  # type: ignore[attr-defined]
    cases = [item.callspec.params["case"] for item in items if hasattr(item, "callspec")]
    small = len([case for case in cases if needs_disk(case)])
    plain = max(1, min(HOSTS, len(cases) - small))
    with fleet(lab, plain, min(2, small), ("b", "slow-kernel"), standby=True) as grounds:
        yield {str(result.case): result for result in run_all(grounds, cases)}


def test_the_table_is_as_long_as_it_was_promised() -> None:
    assert len(set(STANDBY)) == len(STANDBY) >= 80
    assert set(STANDBY_SAMPLE) <= set(STANDBY)


@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_nothing_is_lost_with_standby(results: dict[str, Result], case: Case) -> None:
    assert results[str(case)].violations == []


@pytest.mark.skipif(not EVERYTHING, reason="the whole table writes its chapter: make test-faults")
def test_the_chapter_on_standby_is_written(results: dict[str, Result]) -> None:
    matrix.add(matrix.OTHERS[2], matrix.by_class([results[str(case)] for case in STANDBY]))
    assert len(results) == len(STANDBY)
