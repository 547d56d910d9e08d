"""Nothing is ever lost: hosts are broken at every step of a switch, and judged from outside.

`make test` runs a few cases of the table, `make test-full` a part of it, `make test-faults` all of it and
hundreds of pairs of faults drawn by Hypothesis; the latter writes docs/faults.md. `-k` chooses cases.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lab import control
from lab.session import Lab

from . import matrix, pairs
from .cases import Result, needs_disk, run_all
from .fleet import RELEASES, declared, fleet
from .ground import Ground
from .table import CASES, FEW, RANDOM, SAMPLE, Case

EVERYTHING = os.environ.get("PYINFRA_VLLM_FAULTS") == "all"
CHOSEN = CASES if EVERYTHING else SAMPLE
RANDOM_KILLS = [Case(f"seed {number}", RANDOM) for number in range(40 if EVERYTHING else 4)]
PAIRS = 304 if EVERYTHING else 7
PLAIN, SMALL = (12, 4) if EVERYTHING else (6, 1)

pytestmark = pytest.mark.timeout(6000 if EVERYTHING else 1800)


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest) -> list[Case]:
    """The cases that this run asks for."""
    items = [item for item in request.session.items if item.module is request.module]  # type: ignore[attr-defined]
    chosen = [item.callspec.params["case"] for item in items if hasattr(item, "callspec")]
    randoms = any(item.name == "test_nothing_is_lost_at_random_times" for item in items)
    return [*chosen, *(RANDOM_KILLS if randoms else [])]


@pytest.fixture(scope="module")
def grounds(lab: Lab, cases: list[Case]) -> Iterator[list[Ground]]:
    names = tuple(
        name for name in RELEASES if name in ("b", "slow-kernel") or any(c.to == name for c in cases)
    )
    plain = len([case for case in cases if not needs_disk(case)])
    small = len(cases) - plain
    with fleet(lab, max(1, min(PLAIN, plain)), min(SMALL, small), names) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def everything(grounds: list[Ground], cases: list[Case]) -> list[Result]:
    """Every case, on all hosts at once; tests look at what became of each."""
    return run_all(grounds, cases)


@pytest.fixture(scope="module")
def results(everything: list[Result]) -> dict[str, Result]:
    return {str(result.case): result for result in everything}


@pytest.fixture(scope="module")
def randoms(everything: list[Result]) -> list[Result]:
    return [result for result in everything if result.case.point.startswith(RANDOM)]


@pytest.fixture(scope="module")
def two_faults(grounds: list[Ground], everything: list[Result]) -> tuple[list[Result], list[str]]:
    return pairs.search(grounds, PAIRS)


@pytest.mark.parametrize(
    "case", [case if case in FEW else pytest.param(case, marks=pytest.mark.full) for case in CHOSEN], ids=str
)
def test_nothing_is_lost(results: dict[str, Result], case: Case) -> None:
    assert results[str(case)].violations == []


def test_the_few_are_of_the_sample_and_the_sample_is_of_the_table() -> None:
    assert set(FEW) < set(SAMPLE) < set(CASES)


@pytest.mark.full
def test_nothing_is_lost_at_random_times(randoms: list[Result]) -> None:
    assert len(randoms) == len(RANDOM_KILLS)
    assert [str(result) for result in randoms if result.violations] == []


@pytest.mark.full
def test_nothing_is_lost_by_two_faults(two_faults: tuple[list[Result], list[str]]) -> None:
    results, failing = two_faults
    assert failing == []
    assert len(results) >= PAIRS


@pytest.mark.full
@pytest.mark.skipif(not EVERYTHING, reason="the whole table writes docs/faults.md: make test-faults")
def test_the_matrix_is_written(
    results: dict[str, Result], randoms: list[Result], two_faults: tuple[list[Result], list[str]]
) -> None:
    matrix.write([results[str(case)] for case in CASES], randoms, two_faults[0])
    assert len(results) + len(two_faults[0]) >= 500
    assert len(two_faults[0]) >= 300


@pytest.mark.full
def test_an_ordinary_run_over_all_hosts_ends_with_the_declared_release(
    grounds: list[Ground], everything: list[Result]
) -> None:
    """After all that was done to them, and once more, when there is nothing left to do."""
    limits = [word for ground in grounds for word in ("--limit", ground.host.name)]
    for says in ("", "unchanged"):
        done = control.pyinfra(
            "deploy.py", "-y", *limits, "--data", "retry_rejected=true", env=declared("a", grounds[0])
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert says in done.stderr
    for ground in grounds:
        service = ground.look()["service"]
        assert service["running"] == service["current"] == ground.releases["a"]
