"""Two faults in one switch, drawn by Hypothesis: it tries many pairs, and shrinks one that breaks a promise
to the mildest.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st
from lab.shell import say

from .cases import Result, run_case
from .ground import Ground
from .table import BACK, BEFORE, BETWEEN, GOOD, KEPT, SLOW, SOAK, SOAKED, Case

NOTHING = "nothing"
# Mildest first: that is where a failing pair shrinks to.
MILD_TO_SEVERE = (
    NOTHING,
    "restart",
    "crash",
    "exit-0",
    "hang-a-while",
    "kill-children",
    "kill",
    "torn",
    "stubborn-child",
    "stale-lock",
    "torn-lock",
    "handles",
    "memory",
    "disable",
    "stop",
    "mask",
    "edit",
    "port-5",
    "no-start-10",
    "drop-in-20",
    "frozen-5",
    "run-low",
    "run-full",
    "reboot",
    "power-off",
    "power",
    "torn-power",
)
ON_A_DISK = (*MILD_TO_SEVERE, "full", "inodes")
STEPS = {GOOD: KEPT, SOAKED: (*BEFORE, *BETWEEN, *SOAK), SLOW: (*BEFORE, *BETWEEN, *BACK)}
FURTHER = tuple(
    f"+{entries}" for entries in range(1, 7)
)  # entries after the first fault, whoever writes them


@st.composite
def two_faults(draw: st.DrawFn, faults: Sequence[str]) -> Case:
    to = draw(st.sampled_from(list(STEPS)))
    first = draw(st.sampled_from(faults))
    step = draw(st.sampled_from(STEPS[to]))
    second = (draw(st.sampled_from(faults)), draw(st.sampled_from(FURTHER)))
    return Case(first, step, to, then=second)


def search(grounds: Sequence[Ground], examples: int) -> tuple[list[Result], list[str]]:
    """Pairs on all hosts at once, so many in all: each result, and the mildest failing pair of each host that
    has one.
    """
    share = -(-examples // len(grounds))
    results: list[Result] = []
    failing: list[str] = []
    words = [(ground, number, share, results, failing) for number, ground in enumerate(grounds)]
    threads = [threading.Thread(target=_search, args=arguments) for arguments in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, failing


def _search(ground: Ground, number: int, examples: int, results: list[Result], failing: list[str]) -> None:
    worst: list[Result] = []
    count = itertools.count(1)

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(two_faults(ON_A_DISK if ground.disk else MILD_TO_SEVERE))
    def nothing_is_lost(case: Case) -> None:
        assume(
            worst or NOTHING not in case.faults
        )  # what is drawn has two faults; one may do for a failing example
        result = run_case(ground, case)
        results.append(result)
        wrong = f": {result.violations}" if result.violations else ""
        say(f"pair {next(count)} on {result.host}: {case}: {result.outcome}{wrong}")
        if result.violations:
            worst.append(result)
            raise AssertionError(result.violations)

    try:
        nothing_is_lost()
    except BaseException as error:  # also what Hypothesis says of one that fails only now and then
        told = f"{worst[-1].case}: {worst[-1].violations}" if worst else repr(error)
        failing.append(told)
