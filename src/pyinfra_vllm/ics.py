"""Reads the closed days and hours of an iCalendar file: events that are all-day or timed, once or repeating.

`icalendar` reads and `recurring-ical-events` repeats. Events that can't be read for certain are an error that
names the file and the event, never a day left open without a word. Every event closes, also one that makes
nobody busy (TRANSP:TRANSPARENT), as calendars of holidays have them; only a cancelled one does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .window import Closed, Days, Interval, parse_days

# Both take a third of a second to import, which only a project with calendars should wait for.
if TYPE_CHECKING:
    from icalendar import Calendar, Event

_REPEATING = ("RRULE", "RDATE", "EXDATE", "RECURRENCE-ID")
_FREQUENCIES = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")
_WITHIN_A_DAY = ("BYHOUR", "BYMINUTE", "BYSECOND")
_POSITIVE = ("INTERVAL", "COUNT")
_ENDS = ("COUNT", "UNTIL")


@dataclass(frozen=True)
class Repeating:
    """The repeating events of one file, worked out for each stretch of time that is asked for.

    name: the file, for messages
    text: these events and their time zones, in iCalendar's own form
    """

    name: str
    text: str

    def between(self, start: datetime, end: datetime) -> tuple[Days | Interval, ...]:
        """The occurrences that reach into the days from `start` to `end` (both aware)."""
        found = _query(self.text).between(start, end)
        return tuple(_closed(event, self.name) for event in found if _blocks(event))


def closed(item: object) -> tuple[Closed, ...]:
    """The exceptions of one declared item: a date, a range of dates or an .ics file. Raises ValueError."""
    if isinstance(item, str) and item.lower().endswith(".ics"):
        return read_calendar(Path(item))
    return (parse_days(item),)


def read_calendar(path: Path) -> tuple[Closed, ...]:
    """The file's events; cancelled ones are left out. Raises ValueError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    return parse_calendar(text, str(path))


def parse_calendar(text: str, name: str = "calendar") -> tuple[Closed, ...]:
    """The same for text; `name` stands in messages."""
    calendars = _parsed(text, name)
    events = [event for calendar in calendars for event in calendar.events]
    for number, event in enumerate(events):
        if "UID" not in event:  # RFC 5545 asks for one, and hand-written files lack it
            event.add("UID", f"event-{number}")
        if event.errors:
            raise ValueError(f"{_where(event, name)}: {event.errors[0][0] or 'line'}: {event.errors[0][1]}")
    repeated = {_uid(event) for event in events if any(key in event for key in _REPEATING)}
    once = [event for event in events if _uid(event) not in repeated]
    found: list[Closed] = [_closed(event, name) for event in once if _blocks(event)]
    return (*found, *(_repeating(calendar, repeated, name) for calendar in calendars if repeated))


def _parsed(text: str, name: str) -> list[Calendar]:
    """The calendars of a file, none of whose events got lost."""
    from icalendar import Calendar

    try:
        calendars = [part for part in Calendar.from_ical(text, multiple=True) if isinstance(part, Calendar)]
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{name} can't be read: {error}") from error
    begun = sum(line.rstrip().upper() == "BEGIN:VEVENT" for line in text.splitlines())
    if not calendars or sum(len(calendar.events) for calendar in calendars) != begun:
        raise ValueError(f"{name}: not a complete iCalendar file")
    return calendars


def _where(event: Event, name: str) -> str:
    summary = event.get("SUMMARY") or event.get("UID") or "without a name"
    return f"{name}, event {str(summary)[:60]!r}"


def _uid(event: Event) -> str:
    return str(event["UID"])


def _blocks(event: Event) -> bool:
    return str(event.get("STATUS", "")).upper() != "CANCELLED"


def _closed(event: Event, name: str) -> Days | Interval:
    where = _where(event, name)
    try:
        start, end = event.start, event.end
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(start, datetime):
        if not isinstance(end, date) or isinstance(end, datetime) or end <= start:
            raise ValueError(f"{where}: DTEND must be a later date")
        return Days(start, end - timedelta(days=1))  # DTEND is the day after the last
    for moment in (start, end):
        if isinstance(moment, datetime) and moment.tzinfo is None:
            raise ValueError(
                f"{where}: {moment} has no timezone that is known; end it in Z or give it a TZID"
            )
    if not isinstance(end, datetime) or end <= start:
        raise ValueError(f"{where}: DTEND must be a later time, or DURATION more than nothing")
    return Interval(start, end)


def _repeating(calendar: Calendar, uids: set[str], name: str) -> Repeating:
    """The repeating events of a calendar, each tried once. Raises ValueError."""
    from icalendar import Calendar

    kept = Calendar()
    for part in (*calendar.timezones, *(event for event in calendar.events if _uid(event) in uids)):
        kept.add_component(part)
    for event in kept.events:
        _closed(event, name)
        for rule in _rules(event):
            _check_rule(rule, event.start, _where(event, name))
    found = Repeating(name, kept.to_ical().decode())
    try:
        for event in kept.events:
            first = event.start
            day = datetime(first.year, first.month, first.day).astimezone()
            found.between(day, day + timedelta(days=400))
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{name}: its repeating events can't be worked out: {error}") from error
    return found


def _rules(event: Event) -> Iterator[Any]:
    rules = event.get("RRULE", [])
    yield from rules if isinstance(rules, list) else [rules]


def _check_rule(rule: Any, start: date, where: str) -> None:
    """An event that repeats within a day would be millions of them, and closes no day that anyone means. One
    that never goes on, or never happens, would be looked for without end.
    """
    frequency = [str(value).upper() for value in rule.get("FREQ", [])]
    if len(frequency) != 1 or frequency[0] not in _FREQUENCIES:
        raise ValueError(f"{where}: RRULE must repeat by FREQ={', '.join(_FREQUENCIES[:-1])} or YEARLY")
    if any(key in rule for key in _WITHIN_A_DAY):
        raise ValueError(f"{where}: RRULE must not have {', '.join(_WITHIN_A_DAY)}: once a day at most")
    for key in _POSITIVE:
        for number in rule.get(key, []):
            if number < 1:
                raise ValueError(f"{where}: RRULE has {key}={number}: must be 1 or more (RFC 5545, 3.3.10)")
    if not _happens(rule, start, where):
        raise ValueError(
            f"{where}: RRULE gives no day within a hundred years; mend it, or leave the event out"
        )


def _happens(rule: Any, start: date, where: str) -> bool:
    """Whether the rule gives any day within a hundred years. dateutil looks for one up to the year 9999, so
    it is asked from the like year of 9500 to 9899 on: the calendar repeats itself every 400 years.
    """
    from dateutil.rrule import rrulestr

    bare = type(rule)({key: value for key, value in rule.items() if key not in _ENDS})
    late = datetime(9500 + (start.year - 9500) % 400, start.month, start.day)
    try:
        return next(iter(rrulestr(bare.to_ical().decode(), dtstart=late)), None) is not None
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{where}: RRULE: {error}") from error


@cache
def _query(text: str) -> Any:
    import recurring_ical_events
    from icalendar import Calendar

    return recurring_ical_events.of(Calendar.from_ical(text), skip_bad_series=False)
