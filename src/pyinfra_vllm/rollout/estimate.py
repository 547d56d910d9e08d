"""Estimates how long a switch and its rollback take on one host: the time that a window must have left.

Pure.

Measured in the host's own record of earlier switches, with all the measuring that the gate allows, else
declared. A declared estimate is the least in any case: it is the operator's word about releases that the
record does not know yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from pyinfra_vllm.config import Service
from pyinfra_vllm.on_host.state.observed import Summary
from pyinfra_vllm.on_host.state.transactions import seconds_between, took_s
from pyinfra_vllm.on_host.switch.order import ROLLOUT, TRIAL
from pyinfra_vllm.text import counted

NEWEST = 5
# On the largest of so few: a switch that takes half as long again as any before it must still be undone in
# time.
FACTOR = 1.5
# How much longer than any other of them one may count: a disk that hung once, or a clock that was set, must
# not close every window for ever. A first start that compiles takes 2.3 times as long as one that does not
# (docs/performance.md); the rest is room for colder ones, an estimate.
OUTLIER = 5
MEASURING = ("measure-before", "measure-after", "turns")
COUNTED = ("committed", "rolled_back", "tried")

History = Sequence[Summary]  # the host's record of one service, oldest first


@dataclass(frozen=True)
class Estimate:
    """`source` says in words where the length is from."""

    length: timedelta
    source: str


def estimate(service: Service, history: History = ()) -> Estimate:
    """The estimate that counts: measured, or declared where it is longer or nothing was measured."""
    by_operator = "switch_estimate" in service.model_fields_set
    declared = Estimate(service.estimate, "declared" if by_operator else "the default")
    measured = _measured(service, history)
    if measured is None or (by_operator and declared.length >= measured.length):
        return declared
    return measured


def way_back(service: Service, history: History = ()) -> timedelta:
    """The time that a rollback needs when a switch goes on measuring: the longest so far, with a margin;
    a third of the estimate where there was none.
    """
    whole = _whole(history)
    if not whole:
        return service.switch_estimate / 3
    return _longest_back(service, whole) * FACTOR


def restarts(service: Service, history: History = ()) -> Estimate:
    """The time of a switch and its rollback without the measuring: a tuning trial's cost beside its looks."""
    whole = _whole(history)
    if not whole:
        known = estimate(service, history)
        return Estimate(2 * known.length / 3, f"two thirds of the estimate of a switch, {known.source}")
    length = (_longest_there(service, whole) + _longest_back(service, whole)) * FACTOR
    return Estimate(length, f"measured here in {counted(len(whole), 'switch', 'switches')}")


def _measured(service: Service, history: History) -> Estimate | None:
    """The longest switch and the longest rollback among the newest whole switches, with a margin on both.
    Measuring counts with the most that the gate may take: it may end later the next time.
    """
    whole = _whole(history)
    if not whole:
        return None
    there, back = _longest_there(service, whole), _longest_back(service, whole)
    source = f"measured here in {counted(len(whole), 'switch', 'switches')}"
    starts = service.starts_beside_the_first * _longest(_start(service, switch) for switch in whole)
    return Estimate((there + back + starts) * FACTOR + service.measuring, source)


def _whole(history: History) -> list[Summary]:
    """The newest switches that were judged, without recovery."""
    return [
        switch
        for switch in history
        if switch.outcome in COUNTED
        and switch.purpose in (ROLLOUT, TRIAL)
        and switch.old  # a first release has no baseline to measure
        and not switch.recovered
    ][-NEWEST:]


def _longest(found: Iterable[timedelta]) -> timedelta:
    """The longest, and no more than OUTLIER times the next where there is one."""
    *others, longest = sorted(found)
    return min(longest, OUTLIER * others[-1]) if others and others[-1] else longest


def _longest_there(service: Service, whole: Sequence[Summary]) -> timedelta:
    return _longest(_there(service, switch) for switch in whole)


def _there(service: Service, switch: Summary) -> timedelta:
    """From the beginning to the commit or to where it turned back, less the measuring. The soak comes after
    the commit, and may last beyond the window.
    """
    known = switch.turns
    decided = known.get("commit done") or known.get("restore intended") or switch.ended or switch.began
    whole = timedelta(seconds=seconds_between(switch.began, decided))
    less = sum((_between(switch, step) for step in MEASURING), timedelta())
    return whole - less - _started(switch) + _start(service, switch)


def _between(switch: Summary, step: str) -> timedelta:
    """Duration of a step; zero where it did not begin or end."""
    return timedelta(seconds=took_s(switch.turns, f"{step} intended", f"{step} done"))


def _longest_back(service: Service, whole: Sequence[Summary]) -> timedelta:
    """The longest rollback. With standby a start at least: the old release may fail to wake."""
    least = _start if service.standby else lambda *_: timedelta()
    return _longest(max(_back(service, switch), least(service, switch)) for switch in whole)


def _back(service: Service, switch: Summary) -> timedelta:
    """The rollback's time; where there was none, the new release's own start, which an old one's is like."""
    if {"restore intended", "restore done"} <= switch.turns.keys():
        return timedelta(seconds=took_s(switch.turns, "restore intended", "restore done"))
    return _start(service, switch)


def _start(service: Service, switch: Summary) -> timedelta:
    """From the stop or the sleep of the old release to the new one's first tokens. One that takes longer than
    it may is given up, so what the record says beyond that was not the start.
    """
    return min(_started(switch), timedelta(seconds=service.ready_timeout_s + service.shutdown_timeout_s))


def _started(switch: Summary) -> timedelta:
    return timedelta(seconds=took_s(switch.turns, "activate intended", "ready done"))
