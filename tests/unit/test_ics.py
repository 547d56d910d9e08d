"""Calendars: what is read, and that nothing else is silently left open."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from pyinfra_vllm.ics import parse_calendar, read_calendar
from pyinfra_vllm.window import Days, Interval


def calendar(*lines: str) -> str:
    return "\r\n".join(
        ["BEGIN:VCALENDAR", "VERSION:2.0", "BEGIN:VEVENT", *lines, "END:VEVENT", "END:VCALENDAR", ""]
    )


def test_all_day_events_end_the_day_before_dtend() -> None:
    text = calendar("DTSTART;VALUE=DATE:20261224", "DTEND;VALUE=DATE:20261227", "SUMMARY:Christmas")
    assert parse_calendar(text) == (Days(date(2026, 12, 24), date(2026, 12, 26)),)
    assert parse_calendar(calendar("DTSTART;VALUE=DATE:20261224")) == (
        Days(date(2026, 12, 24), date(2026, 12, 24)),
    )


def test_timed_events_in_utc_and_in_a_named_zone() -> None:
    text = calendar("DTSTART:20260601T210000Z", "DTEND;TZID=Europe/Berlin:20260602T010000")
    assert parse_calendar(text) == (
        Interval(datetime(2026, 6, 1, 21, tzinfo=UTC), datetime(2026, 6, 1, 23, tzinfo=UTC)),
    )


def test_folded_lines_alarms_and_other_properties_are_taken_in_stride() -> None:
    text = calendar(
        "SUMMARY:a very",
        " long line",
        "DTSTART;VALUE=DATE:2026",
        " 1224",
        "BEGIN:VALARM",
        "DURATION:PT5M",
        "END:VALARM",
    )
    assert parse_calendar(text) == (Days(date(2026, 12, 24), date(2026, 12, 24)),)


@pytest.mark.parametrize("line", ["STATUS:CANCELLED", "TRANSP:TRANSPARENT"])
def test_events_that_block_nobody_are_left_out(line: str) -> None:
    assert parse_calendar(calendar("DTSTART;VALUE=DATE:20261224", line)) == ()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["DTSTART;VALUE=DATE:20261224", "RRULE:FREQ=YEARLY"], "line 5: RRULE"),
        (["DTSTART:20261224T100000Z", "DURATION:PT1H"], "line 5: an event with DURATION"),
        (["DTSTART:20261224T100000", "DTEND:20261224T110000"], "line 4: a time without timezone"),
        (["DTSTART;TZID=Mitteleuropa:20261224T100000"], "Mitteleuropa"),
        (["DTSTART:christmas"], "not a date"),
        (["DTSTART;VALUE=DATE:20261324"], "not a date"),
        (["DTSTART:20261224T100000Z"], "DTEND"),
        (["DTSTART:20261224T100000Z", "DTEND:20261224T100000Z"], "DTEND"),
        (["DTSTART;VALUE=DATE:20261224", "DTEND;VALUE=DATE:20261224"], "DTEND"),
        (["DTSTART;VALUE=DATE:20261224", "DTEND;VALUE=DATE:00010101"], "DTEND"),
        (["SUMMARY:nothing else"], "no DTSTART"),
        (["garbage"], "not a calendar line"),
    ],
)
def test_what_cannot_be_read_for_certain_is_an_error(lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_calendar(calendar(*lines), "holidays.ics")


def test_files_that_are_missing_or_no_calendar_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't be read"):
        read_calendar(tmp_path / "none.ics")
    (tmp_path / "cut.ics").write_text("BEGIN:VCALENDAR\nBEGIN:VEVENT\nDTSTART:20261224T100000Z\n")
    with pytest.raises(ValueError, match="not a complete iCalendar file"):
        read_calendar(tmp_path / "cut.ics")
    (tmp_path / "empty.ics").write_text("")
    with pytest.raises(ValueError, match="not a complete"):
        read_calendar(tmp_path / "empty.ics")
