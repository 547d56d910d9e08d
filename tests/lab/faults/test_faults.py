"""Nothing is ever lost: hosts are broken at every step of a switch, and judged from outside.

`make test` runs a part of the table, `make test-faults` all of it and hundreds of kills at random times; the latter
writes docs/faults.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lab import control
from lab.session import Lab

from . import matrix
from .cases import RANDOM, Result, run_all
from .fleet import RELEASES, declared, fleet
from .ground import Ground
from .table import CASES, SAMPLE, Case

EVERYTHING = os.environ.get("PYINFRA_VLLM_FAULTS") == "all"
CHOSEN = CASES if EVERYTHING else SAMPLE
RANDOM_KILLS = [Case(f"seed {number}", RANDOM) for number in range(200 if EVERYTHING else 8)]
PLAIN, SMALL = (12, 4) if EVERYTHING else (5, 1)

pytestmark = pytest.mark.timeout(3600 if EVERYTHING else 600)


@pytest.fixture(scope="module")
def grounds(lab: Lab) -> Iterator[list[Ground]]:
    names = tuple(name for name in RELEASES if name == "b" or any(case.to == name for case in CHOSEN))
    with fleet(lab, PLAIN, SMALL, names) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def everything(grounds: list[Ground]) -> list[Result]:
    """Every case, on all hosts at once; tests look at what became of each."""
    return run_all(grounds, [*CHOSEN, *RANDOM_KILLS])


@pytest.fixture(scope="module")
def results(everything: list[Result]) -> dict[str, Result]:
    found = {str(result.case): result for result in everything}
    return {str(case): found[str(case)] for case in CHOSEN}


@pytest.fixture(scope="module")
def randoms(everything: list[Result]) -> list[Result]:
    return [result for result in everything if result.case.point.startswith(RANDOM)]


@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_nothing_is_lost(results: dict[str, Result], case: Case) -> None:
    assert results[str(case)].violations == []


def test_nothing_is_lost_at_random_times(randoms: list[Result]) -> None:
    assert len(randoms) == len(RANDOM_KILLS)
    assert [str(result) for result in randoms if result.violations] == []


@pytest.mark.skipif(not EVERYTHING, reason="the whole table writes docs/faults.md: make test-faults")
def test_the_matrix_is_written(results: dict[str, Result], randoms: list[Result]) -> None:
    matrix.write(list(results.values()), randoms)
    assert len(results) == len(set(CASES)) >= 150


def test_an_ordinary_run_over_all_hosts_ends_with_the_declared_release(
    grounds: list[Ground], randoms: list[Result]
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
