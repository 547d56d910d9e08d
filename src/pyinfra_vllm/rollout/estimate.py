"""Estimates how long a switch and its rollback take on one host: the time that a window must have left.

Pure.

Measured in the host's own record of earlier switches, with all the measuring that the gate allows, else
declared. A declared estimate is the least in any case: it is the operator's word about releases that the
record does not know yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pyinfra_vllm.answers import Transaction
from pyinfra_vllm.config import Service
from pyinfra_vllm.on_host.switch.order import ROLLOUT, TRIAL
from pyinfra_vllm.text import counted

NEWEST = 5
# On the largest of so few: a switch that takes half as long again as any before it must still be undone in
# time.
FACTOR = 1.5
COUNTED = ("committed", "rolled_back", "tried")

History = Sequence[Transaction]  # the host's record of one service, oldest first


@dataclass(frozen=True)
class Estimate:
    """`source` says in words where the length is from."""

    length: timedelta
    source: str


def estimate(service: Service, history: History = ()) -> Estimate:
    """The estimate that counts: measured, or declared where it is longer or nothing was measured."""
    by_operator = "switch_estimate" in service.model_fields_set
    declared = Estimate(service.switch_estimate, "declared" if by_operator else "the default")
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
    return max(map(_back, whole)) * FACTOR


def restarts(service: Service, history: History = ()) -> Estimate:
    """The time that a switch and its rollback take without the measuring: what each trial of a tuning costs
    beside its looks.
    """
    whole = _whole(history)
    if not whole:
        known = estimate(service, history)
        return Estimate(2 * known.length / 3, f"two thirds of the estimate of a switch, {known.source}")
    length = (max(map(_there, whole)) + max(map(_back, whole))) * FACTOR
    return Estimate(length, f"measured here in {counted(len(whole), 'switch', 'switches')}")


def _measured(service: Service, history: History) -> Estimate | None:
    """The longest switch and the longest rollback among the newest whole switches, with a margin on both.
    Measuring counts with the most that the gate may take for it: what ended soon the last time may be
    doubtful the next time.
    """
    whole = _whole(history)
    if not whole:
        return None
    there, back = max(map(_there, whole)), max(map(_back, whole))
    measuring = 2 * timedelta(seconds=service.gate.criteria().longest_s)
    source = f"measured here in {counted(len(whole), 'switch', 'switches')}"
    return Estimate((there + back) * FACTOR + measuring, source)


def _whole(history: History) -> list[Transaction]:
    """The newest switches that were judged, without recovery."""
    return [
        switch
        for switch in history
        if switch["outcome"] in COUNTED
        and switch.get("purpose") in (ROLLOUT, TRIAL)
        and switch["from"]  # a first release has no baseline to measure
        and not switch.get("recovered")
    ][-NEWEST:]


def _there(switch: Transaction) -> timedelta:
    """From the beginning to the decision, to the end or to where it turned back, less the measuring."""
    whole = _moment(switch["turns"].get("restore intended", switch["ended"])) - _moment(switch["began"])
    return whole - _between(switch, "measure-before") - _between(switch, "measure-after")


def _between(switch: Transaction, step: str) -> timedelta:
    """Duration of a step; zero where it did not begin or end."""
    turns = switch["turns"]
    if f"{step} done" not in turns:
        return timedelta(0)
    return _moment(turns[f"{step} done"]) - _moment(turns[f"{step} intended"])


def _back(switch: Transaction) -> timedelta:
    """The rollback's time; where there was none, the new release's own start, which an old one's is like."""
    turns = switch["turns"]
    for begins, ends in (("restore intended", "restore done"), ("activate intended", "ready done")):
        if begins in turns and ends in turns:
            return _moment(turns[ends]) - _moment(turns[begins])
    return timedelta(0)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
