"""Calendars: what is read, and that nothing else is silently left open."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from pyinfra_vllm.ics import Repeating, parse_calendar, read_calendar
from pyinfra_vllm.window import Days, Interval, Window, state, zone


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


def test_cancelled_events_are_left_out() -> None:
    assert parse_calendar(calendar("DTSTART;VALUE=DATE:20261224", "STATUS:CANCELLED")) == ()


@pytest.mark.parametrize("line", ["TRANSP:TRANSPARENT", "X-MICROSOFT-CDO-BUSYSTATUS:FREE"])
def test_holidays_close_their_day_also_where_they_make_nobody_busy(line: str) -> None:
    """Google's calendars of holidays and Outlook's all-day events are such."""
    once = calendar("DTSTART;VALUE=DATE:20261225", "DTEND;VALUE=DATE:20261226", "SUMMARY:Christmas Day", line)
    assert parse_calendar(once) == (Days(date(2026, 12, 25), date(2026, 12, 25)),)
    yearly = calendar("DTSTART;VALUE=DATE:20201225", "RRULE:FREQ=YEARLY", line)
    found = between(yearly, datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    assert found == {Days(date(2026, 12, 25), date(2026, 12, 25))}


def test_duration_gives_the_end() -> None:
    (found,) = parse_calendar(calendar("DTSTART:20261224T100000Z", "DURATION:PT90M"))
    assert found == Interval(
        datetime(2026, 12, 24, 10, tzinfo=UTC), datetime(2026, 12, 24, 11, 30, tzinfo=UTC)
    )


@pytest.mark.parametrize("name", ["Europe/Berlin", "W. Europe Standard Time"])
def test_timezone_by_its_iana_or_windows_name(name: str) -> None:
    text = calendar(f"DTSTART;TZID={name}:20260601T230000", f"DTEND;TZID={name}:20260602T010000")
    (found,) = parse_calendar(text)
    assert found == Interval(datetime(2026, 6, 1, 21, tzinfo=UTC), datetime(2026, 6, 1, 23, tzinfo=UTC))


VTIMEZONE = """BEGIN:VTIMEZONE
TZID:Office
BEGIN:STANDARD
DTSTART:19700101T000000
TZOFFSETFROM:+0300
TZOFFSETTO:+0300
END:STANDARD
END:VTIMEZONE
"""


def test_timezone_that_the_file_defines() -> None:
    text = calendar("DTSTART;TZID=Office:20260601T030000", "DURATION:PT1H").replace("\r\n", "\n")
    (found,) = parse_calendar(text.replace("BEGIN:VEVENT", f"{VTIMEZONE}BEGIN:VEVENT"))
    assert isinstance(found, Interval)
    assert found.start == datetime(2026, 6, 1, 0, tzinfo=UTC)


def between(text: str, first: datetime, last: datetime) -> set[Days | Interval]:
    (found,) = parse_calendar(text)
    assert isinstance(found, Repeating)
    return set(found.between(first, last))


def test_yearly_holiday_is_closed_each_year() -> None:
    text = calendar("DTSTART;VALUE=DATE:20201224", "DTEND;VALUE=DATE:20201227", "RRULE:FREQ=YEARLY")
    asked = between(text, datetime(2051, 1, 1, tzinfo=UTC), datetime(2053, 1, 1, tzinfo=UTC))
    assert asked == {Days(date(year, 12, 24), date(year, 12, 26)) for year in (2051, 2052)}


def test_occurrences_that_are_moved_left_out_or_cancelled() -> None:
    lines = ["UID:1", "DTSTART:20260601T100000Z", "DTEND:20260601T110000Z", "RRULE:FREQ=WEEKLY;COUNT=4"]
    moved = ["UID:1", "RECURRENCE-ID:20260615T100000Z", "DTSTART:20260616T100000Z", "DURATION:PT2H"]
    cancelled = ["UID:1", "RECURRENCE-ID:20260622T100000Z", "DTSTART:20260622T100000Z", "STATUS:CANCELLED"]
    text = calendar(
        *[*lines, "EXDATE:20260608T100000Z", "END:VEVENT", "BEGIN:VEVENT", *moved],
        *["END:VEVENT", "BEGIN:VEVENT", *cancelled, "DURATION:PT1H"],
    )
    found = between(text, datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    assert found == {
        Interval(datetime(2026, 6, 1, 10, tzinfo=UTC), datetime(2026, 6, 1, 11, tzinfo=UTC)),
        Interval(datetime(2026, 6, 16, 10, tzinfo=UTC), datetime(2026, 6, 16, 12, tzinfo=UTC)),
    }


def test_repeating_event_keeps_its_wall_time_across_daylight_saving() -> None:
    text = calendar("DTSTART;TZID=Europe/Berlin:20260327T020000", "DURATION:PT1H", "RRULE:FREQ=DAILY")
    found = between(text, datetime(2026, 3, 27, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC))
    assert Interval(datetime(2026, 3, 28, 1, tzinfo=UTC), datetime(2026, 3, 28, 2, tzinfo=UTC)) in found
    assert Interval(datetime(2026, 3, 31, 0, tzinfo=UTC), datetime(2026, 3, 31, 1, tzinfo=UTC)) in found


def test_window_stays_closed_on_repeating_days_and_opens_on_the_others() -> None:
    text = calendar("DTSTART;VALUE=DATE:20200101", "RRULE:FREQ=MONTHLY;BYDAY=1MO")
    patched = Window("0 2 * * *", timedelta(hours=3), "Europe/Berlin", parse_calendar(text))
    for day, opened in ((1, False), (2, True), (8, True)):
        at = datetime(2026, 6, day, 3, tzinfo=zone("Europe/Berlin"))
        assert state([patched], at).open is opened, at
    assert state([patched], datetime(2026, 6, 1, 3, tzinfo=UTC)).next[0].day == 2


def test_same_file_read_twice_is_the_same() -> None:
    text = calendar("DTSTART;VALUE=DATE:20201224", "RRULE:FREQ=YEARLY")
    assert parse_calendar(text) == parse_calendar(text)
    assert len({*parse_calendar(text), *parse_calendar(text)}) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["SUMMARY:Advent", "DTSTART:20261224T100000", "DTEND:20261224T110000"], "'Advent'.*no timezone"),
        (["DTSTART;TZID=Mitteleuropa:20261224T100000", "DURATION:PT1H"], "no timezone that is known"),
        (["DTSTART:christmas"], "DTSTART: .*christmas"),
        (["DTSTART;VALUE=DATE:20261324"], "DTSTART: .*20261324"),
        (["DTSTART:20261224T100000Z"], "DTEND"),
        (["DTSTART:20261224T100000Z", "DTEND:20261224T100000Z"], "DTEND"),
        (["DTSTART:20261224T100000Z", "DTEND:20261225"], "DTEND"),
        (["DTSTART:20261224T100000Z", "DTEND:20261224T110000Z", "DURATION:PT1H"], "DTEND and DURATION"),
        (["DTSTART;VALUE=DATE:20261224", "DTEND;VALUE=DATE:20261224"], "DTEND"),
        (["DTSTART;VALUE=DATE:20261224", "DTEND;VALUE=DATE:00010101"], "DTEND"),
        (["SUMMARY:nothing else"], "No DTSTART"),
        (["garbage"], "garbage"),
        (["DTSTART;VALUE=DATE:20261224", "RRULE:FREQ=YEARLY;UNTIL=soon"], "RRULE"),
        (["DTSTART;VALUE=DATE:20261224", "RRULE:never"], "RRULE must repeat by"),
        (["DTSTART;VALUE=DATE:20261224", "RRULE:FREQ=SECONDLY"], "RRULE must repeat by"),
        (["DTSTART:20261224T100000Z", "DURATION:PT1S", "RRULE:FREQ=DAILY;BYSECOND=1,2,3"], "once a day"),
        (["DTSTART:20261224T100000", "DURATION:PT1H", "RRULE:FREQ=DAILY"], "no timezone"),
    ],
)
def test_event_that_cannot_be_read_for_certain_is_an_error(lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_calendar(calendar(*lines), "holidays.ics")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("FREQ=DAILY;INTERVAL=0", "INTERVAL=0: must be 1 or more"),
        ("FREQ=YEARLY;INTERVAL=-1", "INTERVAL=-1: must be 1 or more"),
        ("FREQ=DAILY;COUNT=0", "COUNT=0: must be 1 or more"),
        ("FREQ=DAILY;BYMONTH=2;BYMONTHDAY=31", "no day within a hundred years"),
        ("FREQ=WEEKLY;BYMONTH=13", "no day within a hundred years"),
        ("FREQ=DAILY;INTERVAL=7;BYDAY=TU", "no day within a hundred years"),
        ("FREQ=MONTHLY;BYDAY=6MO", "no day within a hundred years"),
        ("FREQ=MONTHLY;BYSETPOS=0;BYDAY=MO", "RRULE"),
    ],
)
@pytest.mark.parametrize("day", ["16010101", "19990104", "20261228"])  # Mondays
def test_rule_that_never_ends_or_never_happens_is_an_error_at_once(rule: str, message: str, day: str) -> None:
    """Else dateutil would look for its next day for ever, or up to the year 9999."""
    began = time.monotonic()
    lines = ["SUMMARY:Advent", f"DTSTART;VALUE=DATE:{day}", f"RRULE:{rule}"]
    with pytest.raises(ValueError, match=rf"holidays.ics, event 'Advent'.*{message}"):
        parse_calendar(calendar(*lines), "holidays.ics")
    assert time.monotonic() - began < 8, "on a busy machine"


@pytest.mark.parametrize(
    "rule",
    [
        "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29",
        "FREQ=YEARLY;INTERVAL=7;BYMONTH=2;BYMONTHDAY=29",
        "FREQ=DAILY;COUNT=1",
    ],
)
@pytest.mark.parametrize("day", ["20240229", "20000229"])
def test_rule_that_happens_rarely_is_read(rule: str, day: str) -> None:
    (found,) = parse_calendar(calendar(f"DTSTART;VALUE=DATE:{day}", f"RRULE:{rule}"))
    assert isinstance(found, Repeating)


def test_files_that_are_missing_or_no_calendar_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't be read"):
        read_calendar(tmp_path / "none.ics")
    (tmp_path / "cut.ics").write_text("BEGIN:VCALENDAR\nBEGIN:VEVENT\nDTSTART:20261224T100000Z\n")
    with pytest.raises(ValueError, match="not a complete iCalendar file"):
        read_calendar(tmp_path / "cut.ics")
    (tmp_path / "empty.ics").write_text("")
    with pytest.raises(ValueError, match="not a complete"):
        read_calendar(tmp_path / "empty.ics")
