"""When the trials of a tuning would begin: one after the other, in the windows of its service. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pyinfra_vllm.window import Window, state

MOST_NIGHTS = 14  # to look ahead


@dataclass(frozen=True)
class Night:
    """One opening of the windows, and when its trials begin; `closes` None: never."""

    opens: datetime
    closes: datetime | None
    starts: tuple[datetime, ...]


def nights(windows: Sequence[Window], at: datetime, lengths: Sequence[timedelta]) -> list[Night]:
    """The openings after `at` (aware) that trials of these lengths take, each begun no later than at the last
    start for its length, which leaves time for the rollback.

    The order is kept: a shorter one never overtakes. Those that fit into none of MOST_NIGHTS are left out.
    """
    found: list[Night] = []
    left, moment = list(lengths), at
    for _ in range(MOST_NIGHTS):
        now = state(windows, moment)
        if not now.open:
            if not now.next:
                break
            moment = now.next[0]
            now = state(windows, moment)
        closes = now.closes
        local = moment.astimezone(closes.tzinfo) if closes else moment
        starts = _fitting(local, closes, left)
        if starts:
            found.append(Night(local, closes, starts))
        del left[: len(starts)]
        if not left or closes is None:
            break
        moment = closes
    return found


def _fitting(at: datetime, closes: datetime | None, lengths: Sequence[timedelta]) -> tuple[datetime, ...]:
    """When each begins, while they end before the window closes. In UTC: a night may have another hour."""
    starts: list[datetime] = []
    moment = at.astimezone(UTC)
    for length in lengths:
        if closes is not None and moment + length > closes:
            break
        starts.append(moment.astimezone(at.tzinfo))
        moment += length
    return tuple(starts)
