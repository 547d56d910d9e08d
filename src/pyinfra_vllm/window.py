"""When a switch may begin, and how late it may still begin. Pure: no clock, no files, no host.

A window opens by a cron line on the wall clock of its timezone and stays open for an absolute time. Several windows
add up; exceptions and deny windows take away, and always win.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache

from cronsim import CronSim, CronSimError

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(\d+d)?\s*(\d+h)?\s*(\d+m)?\s*(\d+s)?")
LONGEST_DURATION = timedelta(days=7)


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


@dataclass(frozen=True)
class Window:
    """One cron line with its length; `closed` holds the exceptions; `deny` makes it take away instead of add."""

    cron: str
    duration: timedelta
    timezone: str
    closed: tuple[Days | Interval, ...] = ()
    deny: bool = False

    def __post_init__(self) -> None:
        check_cron(self.cron)
        zone(self.timezone)
        if not timedelta(0) < self.duration <= LONGEST_DURATION:
            raise ValueError(f"a window lasts more than nothing and at most {LONGEST_DURATION.days} days")


@cache
def zone(name: str) -> zoneinfo.ZoneInfo:
    """The timezone; raises ValueError for a name that is not an IANA one."""
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
    """`"3h"`, `"90m"`, `"1h30m"`, seconds as a number, or a timedelta; raises ValueError."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return timedelta(seconds=value)
    match = _DURATION.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match is None or not any(match.groups()):
        raise ValueError('a duration is like "3h", "90m", "1h30m", or a number of seconds')
    return timedelta(seconds=sum(int(part[:-1]) * _UNITS[part[-1]] for part in match.groups() if part))


def parse_days(value: object) -> Days:
    """A date, `"2026-12-24"` or `"2026-12-24..2027-01-01"` (both ends closed); raises ValueError."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return Days(value, value)
    if not isinstance(value, str):
        raise ValueError('an exception is a date like "2026-12-24" or a range "2026-12-24..2027-01-01"')
    first_text, _, last_text = value.partition("..")
    try:
        first = date.fromisoformat(first_text.strip())
        last = date.fromisoformat(last_text.strip()) if last_text else first
    except ValueError as error:
        raise ValueError(
            'an exception is a date like "2026-12-24" or a range "2026-12-24..2027-01-01"'
        ) from error
    if last < first:
        raise ValueError("the range ends before it begins")
    return Days(first, last)


def timezone_names() -> Iterable[str]:
    """Every IANA name known here, for the nearest one in a message."""
    return zoneinfo.available_timezones()
