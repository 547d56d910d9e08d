"""When a switch may begin, and how late it may still begin. Pure: no clock, no files, no host.

A window opens by a cron line on the wall clock of its timezone and stays open for an absolute time. Several
windows add up; exceptions and deny windows take away, and always win.

Daylight saving: an opening at a time that the clock jumps over happens once, at the moment after the jump;
one at a time that comes twice happens once, the first time. Only where the hour is `*` does an opening belong
to every hour that really passes: both hours of the repeated one, none for the skipped one.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Protocol

from cronsim import CronSim, CronSimError

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(\d+d)?\s*(\d+h)?\s*(\d+m)?\s*(\d+s)?")
LONGEST_DURATION = timedelta(days=7)
_YEAR = timedelta(days=366)
# No switch takes so long; what is longer could not be counted back from a date.
_LONGEST_TIME = timedelta(days=36525)
# The ends of the calendar. Some timezones have no time of their own there.
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
# What can be asked about: looking ahead and back from it stays on the calendar.
YEARS = range(1970, 9900)

NEXT = 5
# How far to look for the next openings, further only while too few are found: most windows open daily or
# weekly, some once a year, and five times 29 February can take 24 years (none is in 2100).
_SPANS = tuple(timedelta(days=days) for days in (10, 70, 800, 4100, 9200))
# Of an opening, what a run takes until its first switch begins: the plan of 500 hosts takes 20 s
# (docs/performance.md), and each host checks both releases.
BEGINNING = timedelta(minutes=1)
# Openings so dense that a longer look would only cost time.
_DENSE = 2000
# How much further repeating exceptions are looked for: an all-day one is in local time, 14 hours off at most.
_SPARE = timedelta(days=2)
# A skipped day (Apia, 2011-12-30) is the largest jump of a wall clock on record.
_LARGEST_JUMP = timedelta(hours=26)


@dataclass(frozen=True)
class Days:
    """Local days on which a window stays closed, both ends included."""

    first: date
    last: date


@dataclass(frozen=True)
class Interval:
    """A stretch of absolute time, `end` not included. Both are aware."""

    start: datetime
    end: datetime


class Recurrence(Protocol):
    """Closed days and times that repeat, and are worked out where they are asked for (ics.Repeating)."""

    def between(self, start: datetime, end: datetime) -> tuple[Days | Interval, ...]:
        """Those that reach into the days from `start` to `end` (both aware)."""


Closed = Days | Interval | Recurrence


@dataclass(frozen=True)
class Window:
    """One cron line with its length; `closed` holds the exceptions; `deny` makes it take away time."""

    cron: str
    duration: timedelta
    timezone: str
    closed: tuple[Closed, ...] = ()
    deny: bool = False

    def __post_init__(self) -> None:
        check_cron(self.cron)
        zone(self.timezone)
        if not timedelta(0) < self.duration <= LONGEST_DURATION:
            raise ValueError(f"a window lasts more than nothing and at most {LONGEST_DURATION.days} days")


# Files beside the zones: whichever this machine is in, and zones that count leap seconds.
_NO_NAMES = ("localtime", "posixrules", "right/")


@cache
def zone(name: str) -> zoneinfo.ZoneInfo:
    """The timezone; raises ValueError for a name that is not an IANA one."""
    if name.startswith(_NO_NAMES):
        raise ValueError("unknown timezone")
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("unknown timezone") from error


def check_cron(line: str) -> None:
    """Raises ValueError unless `line` has five fields that can match (checked for the next fifty years)."""
    if len(line.split()) != 5:
        raise ValueError("a cron line has five fields: minute hour day-of-month month day-of-week")
    try:
        next(CronSim(line, datetime(2026, 1, 1)))
    except CronSimError as error:
        raise ValueError(f"impossible cron line ({str(error).lower()})") from error
    except StopIteration as error:
        raise ValueError("impossible cron line (it never matches)") from error


def parse_duration(value: object) -> timedelta:
    """`"3h"`, `"90m"`, `"1h30m"`, seconds as a number, or a timedelta; at most 100 years.

    Raises ValueError.
    """
    if isinstance(value, timedelta):
        return _time(value.total_seconds())
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _time(value)
    match = _DURATION.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match is None or not any(match.groups()):
        raise ValueError('a duration is like "3h", "90m", "1h30m", or a number of seconds')
    return _time(sum(int(part[:-1]) * _UNITS[part[-1]] for part in match.groups() if part))


def _time(seconds: float) -> timedelta:
    if abs(seconds) > _LONGEST_TIME.total_seconds():
        raise ValueError("a duration is at most 100 years (36525d)")
    return timedelta(seconds=seconds)


def shown_duration(duration: timedelta) -> str:
    """`1h30m`: what `parse_duration` reads back."""
    left = round(duration.total_seconds())
    parts = []
    for unit, seconds in _UNITS.items():
        count, left = divmod(left, seconds)
        parts.append(f"{count}{unit}" if count else "")
    return "".join(parts) or "0s"


def parse_days(value: object) -> Days:
    """A date, `"2026-12-24"` or `"2026-12-24..2027-01-01"` (both ends closed); raises ValueError."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return Days(value, value)
    if not isinstance(value, str):
        raise ValueError('an exception is a date like "2026-12-24" or a range "2026-12-24..2027-01-01"')
    first_text, dots, last_text = value.partition("..")
    try:
        first = date.fromisoformat(first_text.strip())
        last = date.fromisoformat(last_text.strip()) if dots else first
    except ValueError as error:
        raise ValueError(
            'an exception is a date like "2026-12-24" or a range "2026-12-24..2027-01-01"'
        ) from error
    if last < first:
        raise ValueError("the range ends before it begins")
    return Days(first, last)


def timezone_names() -> Iterable[str]:
    """Every IANA name known here, for the nearest one in a message."""
    return (name for name in zoneinfo.available_timezones() if not name.startswith(_NO_NAMES))


@dataclass(frozen=True)
class WindowState:
    """Open or closed at one moment.

    `closes` and `last_start` are None while closed, and when nothing ever closes.

    `last_start` is `closes` less what a switch and its rollback need; it is in the past when too late.
    """

    open: bool
    closes: datetime | None
    last_start: datetime | None
    next: tuple[datetime, ...]
    reason: str


def state(
    windows: Sequence[Window], at: datetime, needed: timedelta = timedelta(0), source: str = ""
) -> WindowState:
    """The windows' state at `at` (aware), for a switch that with its rollback needs `needed`, by `source`.

    No window at all means any time. Times carry the offset of the first window's timezone.
    """
    if not windows:
        return WindowState(True, None, None, (), "open at any time: no window is declared")
    tz = zone(next((window for window in windows if not window.deny), windows[0]).timezone)
    at = at.astimezone(UTC)
    pieces, horizon = _look_ahead(windows, at)
    upcoming = tuple(piece.start.astimezone(tz) for piece in pieces if piece.start > at)[:NEXT]
    current = next((piece for piece in pieces if piece.start <= at < piece.end), None)
    if current is None:
        return WindowState(False, None, None, upcoming, _why_closed(windows, at))
    if current.end >= horizon:
        return WindowState(True, None, None, upcoming, "open, and never closed by these windows")
    last_start = current.end - needed
    reason = f"open until {current.end.astimezone(tz):%Y-%m-%d %H:%M %Z}"
    if at > last_start:
        reason += ", but too late to begin"
    if needed:
        takes = f"a switch and its rollback may take {shown_duration(needed)}"
        reason += f": {takes} ({source})" if source else f": {takes}"
    return WindowState(True, current.end.astimezone(tz), last_start.astimezone(tz), upcoming, reason)


def longest(windows: Sequence[Window], at: datetime, enough: timedelta = timedelta.max) -> timedelta | None:
    """How long the windows stay open at most in the year after `at` (aware); None: they never open again.

    + enough: a length after which there is no need to look for a longer one
    """
    pieces, _ = _look_ahead(windows, at.astimezone(UTC))
    found = max((piece.end - piece.start for piece in pieces if piece.end > at), default=None)
    if found is None or found >= enough:
        return found
    pieces = open_between(windows, at, at + _YEAR)
    return max((piece.end - piece.start for piece in pieces), default=found)


def never_begins(
    windows: Sequence[Window],
    at: datetime,
    needed: timedelta,
    source: str = "",
    advice: str = "declare a longer one, or a shorter `switch_estimate`",
) -> str:
    """Why no switch can ever begin in these windows after `at` (aware); empty where one can.

    + advice: what to do about openings that are too short
    """
    if not windows:
        return ""
    opened = longest(windows, at, needed + BEGINNING)
    if opened is None:
        return "never opens again: exceptions and deny windows take all of it"
    if opened >= needed + BEGINNING:
        return ""
    told = f" ({source})" if source else ""
    return (
        f"is never open for longer than {shown_duration(opened)}, and a switch and its rollback may take"
        f" {shown_duration(needed)}{told}, beside {shown_duration(BEGINNING)} in which a run begins: {advice}"
    )


def _look_ahead(windows: Sequence[Window], at: datetime) -> tuple[list[Interval], datetime]:
    """The open stretches around and after `at`, and the moment up to which they are known."""
    start = at - LONGEST_DURATION
    for span in _SPANS:
        horizon = at + span
        pieces = open_between(windows, start, horizon)
        upcoming = sum(piece.start > at for piece in pieces)
        closes = all(piece.end < horizon for piece in pieces if piece.start <= at)
        dense = any(_count_at_least(window, at, horizon, _DENSE) for window in windows)
        if (upcoming >= NEXT and closes) or dense:
            break
    return pieces, horizon


def _count_at_least(window: Window, start: datetime, end: datetime, count: int) -> bool:
    return sum(1 for _, _ in zip(range(count), _moments(window, start, end), strict=False)) == count


def open_between(windows: Sequence[Window], start: datetime, end: datetime) -> list[Interval]:
    """The open stretches between two moments, in order, merged, and cut off at `start` and `end`."""
    opened = [part for window in windows if not window.deny for part in _stretches(window, start, end)]
    denied = [part for window in windows if window.deny for part in _stretches(window, start, end)]
    return _less(_joined(opened), _joined(denied))


def _stretches(window: Window, start: datetime, end: datetime) -> list[Interval]:
    """One window between two moments, without its exceptions."""
    tz = zone(window.timezone)
    exceptions = _exceptions(window, start, end)
    days = [item for item in exceptions if isinstance(item, Days)]
    found = [
        Interval(max(moment, start), min(moment + window.duration, end))
        for wall, moment in _moments(window, start, end)
        if moment + window.duration > start
        and not any(item.first <= wall.date() <= item.last for item in days)
    ]
    closed = [_closed_time(item, tz) for item in exceptions]
    return _less(_joined(found), _joined(closed))


def _exceptions(window: Window, start: datetime, end: datetime) -> list[Days | Interval]:
    """The window's exceptions; of repeating ones those that matter to an opening within the time."""
    first, last = start - window.duration - _SPARE, end + _SPARE
    return [
        part
        for item in window.closed
        for part in ((item,) if isinstance(item, (Days, Interval)) else item.between(first, last))
    ]


def _closed_time(item: Days | Interval, tz: zoneinfo.ZoneInfo) -> Interval:
    if isinstance(item, Interval):
        return Interval(_in_utc(item.start), _in_utc(item.end))
    return Interval(_midnight(item.first, 0, tz), _midnight(item.last, 1, tz))


def _in_utc(at: datetime) -> datetime:
    """`at` in UTC; the calendar's end for a moment beyond it, as "until further notice" has."""
    try:
        return at.astimezone(UTC)
    except OverflowError:
        return _FIRST if at.year == _FIRST.year else _LAST


def _midnight(day: date, later: int, tz: zoneinfo.ZoneInfo) -> datetime:
    """The moment at which the day so many days after `day` begins; at most the calendar's end."""
    if day.year in (_FIRST.year, _LAST.year):
        return _FIRST if day.year == _FIRST.year else _LAST
    return _moment(datetime(day.year, day.month, day.day) + timedelta(days=later), tz)


def _moments(window: Window, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Every opening that reaches into [start, end): its wall time and its moment in UTC."""
    tz = zone(window.timezone)
    every_hour = window.cron.split()[1] == "*"
    first = (start - window.duration).astimezone(tz).replace(tzinfo=None) - _LARGEST_JUMP
    last = end.astimezone(tz).replace(tzinfo=None) + _LARGEST_JUMP
    for wall in CronSim(window.cron, first):
        if wall > last:
            return
        moments = _every_moment(wall, tz) if every_hour else (_moment(wall, tz),)
        for moment in moments:
            if start < moment + window.duration and moment < end:
                yield wall, moment


def _moment(wall: datetime, tz: zoneinfo.ZoneInfo) -> datetime:
    """The first moment at which the clock shows `wall`, or the one after the jump that skips it."""
    moments = _every_moment(wall, tz)
    return moments[0] if moments else _after_jump(wall, tz)


def _every_moment(wall: datetime, tz: zoneinfo.ZoneInfo) -> tuple[datetime, ...]:
    """Every moment (none, one or two) at which the clock of `tz` shows `wall`, in UTC."""
    both = {wall.replace(tzinfo=tz, fold=fold).astimezone(UTC) for fold in (0, 1)}
    return tuple(sorted(moment for moment in both if moment.astimezone(tz).replace(tzinfo=None) == wall))


def _after_jump(wall: datetime, tz: zoneinfo.ZoneInfo) -> datetime:
    """The moment of the jump that skips `wall`: between its two readings (PEP 495), by bisection."""
    before, after = sorted(wall.replace(tzinfo=tz, fold=fold).astimezone(UTC) for fold in (0, 1))
    old = before.astimezone(tz).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = before + timedelta(seconds=(after - before) // timedelta(seconds=2))
        if middle.astimezone(tz).utcoffset() == old:
            before = middle
        else:
            after = middle
    return after


def _joined(parts: Iterable[Interval]) -> list[Interval]:
    """The same time as few stretches in order; those that touch become one."""
    joined: list[Interval] = []
    for part in sorted(parts, key=lambda part: part.start):
        if joined and part.start <= joined[-1].end:
            joined[-1] = Interval(joined[-1].start, max(joined[-1].end, part.end))
        elif part.start < part.end:
            joined.append(part)
    return joined


def _less(parts: Sequence[Interval], taken: Sequence[Interval]) -> list[Interval]:
    """`parts` without the time of `taken`; both in order and without overlaps, as `_joined` leaves them."""
    left: list[Interval] = []
    for part in parts:
        start = part.start
        for cut in taken:
            if cut.end <= start or cut.start >= part.end:
                continue
            if cut.start > start:
                left.append(Interval(start, cut.start))
            start = cut.end
        if start < part.end:
            left.append(Interval(start, part.end))
    return left


def _why_closed(windows: Sequence[Window], at: datetime) -> str:
    moment = timedelta(microseconds=1)
    for window in windows:
        if window.deny and _stretches(window, at, at + moment):
            return f'denied by the window "{window.cron}" ({window.timezone})'
    for window in windows:
        bare = Window(window.cron, window.duration, window.timezone)
        if not window.deny and window.closed and _stretches(bare, at, at + moment):
            return f'an exception of the window "{window.cron}" ({window.timezone})'
    return "outside every window"
