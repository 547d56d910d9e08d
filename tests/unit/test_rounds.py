"""Rounds in turns, by a clock of their own: how many blocks fit, and who is asked what."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from pyinfra_vllm.on_host.bench.record import Phase
from pyinfra_vllm.on_host.gate.in_turns import InTurns
from pyinfra_vllm.on_host.switch import pair, rounds
from pyinfra_vllm.on_host.switch.pair import Act


class Clock:
    """Time that passes only where a test says so."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(rounds, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


def measured(
    clock: Clock,
    round_s: float,
    budget_s: float,
    longest_s: float,
    starts: int = 1,
    left_open: Callable[[InTurns], bool] = lambda found: False,
) -> InTurns:
    """Servers whose rounds take so long, and whose changes take no time; never precise enough."""
    seen: list[pair.Goal] = []

    def reach(goal: pair.Goal) -> Sequence[Act]:
        changed = seen[-1:] != [goal]
        seen.append(goal)
        return [Act(pair.WAKE, goal.serves)] if changed else []

    def ask(side: str, number: int, until: float) -> Sequence[Phase]:
        clock.now += round_s
        return ()

    taken = rounds.Rounds(reach, ask, lambda found: False, left_open, lambda who: None, "seed")
    return taken.measure(budget_s, longest_s, (lambda: True) if starts > 1 else None)


@pytest.mark.parametrize(
    ("round_s", "blocks"),
    [
        (2.5, 12),  # as many as fit the budget
        (4.0, 7),
        (10.0, 6),  # six take twice the budget
        (16.0, 5),  # and not even those fit where it must end
        (0.1, 30),  # what the journal has room for
    ],
)
def test_the_budget_is_exceeded_for_as_many_blocks_as_a_verdict_needs_alone(
    clock: Clock, round_s: float, blocks: int
) -> None:
    assert len(measured(clock, round_s, 120.0, 360.0).blocks) == blocks
    assert clock.now <= 360


@pytest.mark.parametrize(("round_s", "blocks"), [(2.5, 12), (10.0, 6), (0.1, 30)])
def test_two_starts_share_the_time(clock: Clock, round_s: float, blocks: int) -> None:
    found = measured(clock, round_s, 120.0, 360.0, starts=2)
    assert [block[0].start for block in found.blocks] == [0] * (blocks // 2) + [1] * (blocks // 2)
    assert found.starts == 2 and clock.now <= 360


@pytest.mark.parametrize(
    ("round_s", "starts", "asked", "blocks"),
    [
        (2.5, 1, [12], 30),  # what the journal has room for
        (4.0, 1, [7], 22),
        (10.0, 1, [6], 9),
        (16.0, 1, [], 5),  # too few for a verdict
        (2.5, 2, [12], 21),  # the first starts have half of the budget, the second ones what is left
    ],
)
def test_what_is_left_open_at_the_end_of_the_budget_is_measured_on(
    clock: Clock, round_s: float, starts: int, asked: list[int], blocks: int
) -> None:
    looks: list[int] = []

    def left_open(found: InTurns) -> bool:
        looks.append(len(found.blocks))
        return True

    assert len(measured(clock, round_s, 120.0, 360.0, starts, left_open).blocks) == blocks
    assert looks == asked and clock.now <= 360


def test_window_without_end_needs_no_more(clock: Clock) -> None:
    assert len(measured(clock, 2.5, 120.0, math.inf).blocks) == 12
