"""The fleet in one sentence, for a period: how many hosts went back, are down, do not serve. And their order.

Pure: from rows and switches to words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta, tzinfo

from ..on_host.switch.order import ROLLBACK
from .history import Switch, moment
from .status import CHANGING, DOWN, DRIFT, STOPPED, UNPROVEN, Row, severity, word

WENT_BACK = ("rolled_back", "restore_failed")
# How a host is that needs a look: of one host, and of several.
VERBS = {
    DOWN: ("is down", "are down"),
    UNPROVEN: ("runs an unproven release", "run an unproven release"),
    STOPPED: ("does not serve", "do not serve"),
    DRIFT: ("differs from its declaration", "differ from their declaration"),
    CHANGING: ("is switching now", "are switching now"),
}
BY_HAND = ("was rolled back by hand", "were rolled back by hand")


@dataclass(frozen=True)
class Period:
    """The time that the headline is about; `words` as a sentence ends with them, like `last night`."""

    began: datetime
    ended: datetime
    words: str

    def __contains__(self, switch: Switch) -> bool:
        return self.began <= moment(switch.began) <= self.ended


def period(at: datetime, zone: tzinfo | None = None, since: datetime | None = None) -> Period:
    """The period until `at`: from `since`, else from noon of the day before.

    + zone: the reader's timezone; None: this machine's
    """
    ended = at.astimezone(zone)
    if since is not None:
        began = since.astimezone(zone)
        return Period(began, ended, f"since {began:%Y-%m-%d %H:%M}")
    began = datetime.combine(ended.date() - timedelta(days=1), time(12), zone).astimezone(zone)
    return Period(began, ended, "last night" if ended.hour < 12 else "since yesterday noon")


def headline(rows: Sequence[Row], switches: Iterable[Switch], about: Period, declared: bool = True) -> str:
    """The sentence.

    + switches: of any time; those of the period count
    + declared: whether the declaration could be read, so that hosts can differ from it
    """
    recent = [item for item in switches if item in about]
    back = went_back(recent)
    states = Counter(word(row) for host, row in worst(rows).items() if word(row) != DRIFT or host not in back)
    kept = [item for item in recent if item.outcome == "committed"]
    by_hand = {item.host for item in kept if item.purpose == ROLLBACK}
    took = {item.host for item in kept if item.purpose != ROLLBACK}
    told = [(len(back), (f"went back {about.words}",) * 2), (len(by_hand), BY_HAND)]
    told += [(states[state], verbs) for state, verbs in VERBS.items()]
    if not any(count for count, _ in told):
        total = len(worst(rows))
        every = f"All {total} hosts serve" if total > 1 else "The host serves"
        news = f"{len(took)} took a new release" if took else "no switch"
        return f"{every}{' as declared' if declared else ''}; {news} {about.words}."
    if not back:
        told.append((len(took), (f"took a new release {about.words}",) * 2))
    return _counted([item for item in told if item[0]], len(worst(rows)))


def _counted(told: Sequence[tuple[int, tuple[str, ...]]], total: int) -> str:
    """The sentence for these counts: `2 of 24 hosts went back last night, 1 is down.`, for example."""
    parts = [f"{count} {verbs[count > 1]}" for count, verbs in told]
    first, verbs = told[0]
    hosts = f"{first} of {total} hosts" if total > 1 else "The host"
    return ", ".join([f"{hosts} {verbs[first > 1]}", *parts[1:]]) + "."


def went_back(switches: Iterable[Switch]) -> set[str]:
    """The hosts on which a release was tried and not kept."""
    return {item.host for item in switches if item.outcome in WENT_BACK}


def worst(rows: Iterable[Row]) -> dict[str, Row]:
    """Host -> the row of it that needs a person most."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.host not in found or severity(row) < severity(found[row.host]):
            found[row.host] = row
    return found


def by_severity(rows: Sequence[Row], back: set[str]) -> list[Row]:
    """The rows with the hosts that need a person most on top: of equal ones, those that went back first.

    The services of one host stay together.
    """
    hosts = worst(rows)
    place = {host: number for number, host in enumerate(hosts)}
    return sorted(
        rows,
        key=lambda row: (severity(hosts[row.host]), row.host not in back, place[row.host], severity(row)),
    )
