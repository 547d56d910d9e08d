"""Reads the closed days and hours of an iCalendar file: events with a start and an end, all-day or timed.

Small on purpose. What it can't read for certain (repeating events, unknown timezones, durations) is an error
that names the file and the line, never a day silently left open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from .window import Days, Interval, zone

_REFUSED = ("RRULE", "RDATE", "EXDATE", "EXRULE", "RECURRENCE-ID")


@dataclass(frozen=True)
class _Moment:
    day: date
    at: datetime | None = None  # None: the whole day


@dataclass
class _Event:
    line: int
    start: _Moment | None = None
    end: _Moment | None = None
    cancelled: bool = False
    free: bool = False
    nested: list[str] = field(default_factory=list)


def read_calendar(path: Path) -> tuple[Days | Interval, ...]:
    """The file's events; cancelled and transparent ("free") ones are left out. Raises ValueError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    return parse_calendar(text, str(path))


def parse_calendar(text: str, name: str = "calendar") -> tuple[Days | Interval, ...]:
    """The same for text; `name` stands in messages."""
    found: list[Days | Interval] = []
    event: _Event | None = None
    seen_calendar = False
    for number, line in _unfolded(text):
        head, colon, value = line.partition(":")
        key, *parameters = head.upper().split(";")
        where = f"{name}, line {number}"
        if not colon:
            raise ValueError(f"{where}: not a calendar line")
        if key == "BEGIN" and value.upper() == "VCALENDAR":
            seen_calendar = True
        elif key == "BEGIN" and value.upper() == "VEVENT":
            event = _Event(number)
        elif key == "END" and value.upper() == "VEVENT" and event is not None:
            found.extend(_closed(event, name))
            event = None
        elif event is not None:
            _read_line(event, key, head.split(";")[1:] if parameters else [], value, where)
    if not seen_calendar or event is not None:
        raise ValueError(f"{name}: not a complete iCalendar file")
    return tuple(found)


def _unfolded(text: str) -> list[tuple[int, str]]:
    """Content lines with the number of their first line; a line that begins with a blank continues the one
    before.
    """
    lines: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line[:1] in (" ", "\t") and lines:
            first, begun = lines[-1]
            lines[-1] = (first, begun + line[1:])
        elif line.strip():
            lines.append((number, line))
    return lines


def _read_line(event: _Event, key: str, parameters: list[str], value: str, where: str) -> None:
    if key == "BEGIN":
        event.nested.append(value.upper())
    elif key == "END" and event.nested:
        event.nested.pop()
    elif event.nested:
        return  # an alarm inside the event
    elif key in _REFUSED:
        raise ValueError(f"{where}: {key} (a repeating event) can't be read; write its days out")
    elif key == "DURATION":
        raise ValueError(f"{where}: an event with DURATION can't be read; give it a DTEND")
    elif key == "DTSTART":
        event.start = _moment(parameters, value, where)
    elif key == "DTEND":
        event.end = _moment(parameters, value, where)
    elif key == "STATUS":
        event.cancelled = value.strip().upper() == "CANCELLED"
    elif key == "TRANSP":
        event.free = value.strip().upper() == "TRANSPARENT"


def _moment(parameters: list[str], value: str, where: str) -> _Moment:
    named = dict(item.partition("=")[::2] for item in parameters)
    named = {key.upper(): given.strip('"') for key, given in named.items()}
    value = value.strip()
    try:
        if named.get("VALUE", "").upper() == "DATE" or "T" not in value:
            return _Moment(datetime.strptime(value, "%Y%m%d").date())
        if value.endswith("Z"):
            at = datetime.strptime(value, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            return _Moment(at.date(), at)
        at = datetime.strptime(value, "%Y%m%dT%H%M%S")
    except ValueError as error:
        raise ValueError(f"{where}: {value!r} is not a date or a time of iCalendar") from error
    if "TZID" not in named:
        raise ValueError(f"{where}: a time without timezone; end it in Z or give it an IANA TZID")
    try:
        return _Moment(at.date(), at.replace(tzinfo=zone(named["TZID"])))
    except ValueError as error:
        raise ValueError(f"{where}: TZID {named['TZID']!r} is not an IANA timezone") from error


def _closed(event: _Event, name: str) -> list[Days | Interval]:
    where = f"{name}, event at line {event.line}"
    if event.start is None:
        raise ValueError(f"{where}: no DTSTART")
    if event.cancelled or event.free:
        return []
    start, end = event.start, event.end
    if start.at is None:
        # RFC 5545 3.6.1: an all-day event without DTEND lasts one day; a DTEND is the day after the last.
        if end is not None and (end.at is not None or end.day <= start.day):
            raise ValueError(f"{where}: DTEND must be a later date")
        return [Days(start.day, end.day - timedelta(days=1) if end is not None else start.day)]
    if end is None or end.at is None or end.at <= start.at:
        raise ValueError(f"{where}: DTEND must be a later time")
    return [Interval(start.at, end.at)]
