"""Windows against an independent, slow reference: a scan of real time, minute by minute."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyinfra_vllm.window import (
    Days,
    Interval,
    Window,
    never_begins,
    open_between,
    parse_days,
    parse_duration,
    shown_duration,
    state,
)

ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "America/Santiago",  # jumps at midnight
    "Australia/Lord_Howe",  # by half an hour
    "Asia/Tokyo",
    "Asia/Kathmandu",
    "Africa/Casablanca",  # backwards for Ramadan
    "Pacific/Apia",
)
ODD = ("America/Santiago", "Australia/Lord_Howe", "Africa/Casablanca")
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
BEGIN, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC)


class Reference:
    """One window by walking real time a minute at a time: looks at the clock, never computes with it."""

    def __init__(
        self, zone: str, minutes: set[int], hours: set[int] | None, weekdays: set[int], length: timedelta
    ):
        self.tz, self.minutes, self.hours = ZoneInfo(zone), minutes, hours
        self.weekdays, self.length = weekdays, length

    def __repr__(self) -> str:
        return f"{self.cron()} in {self.tz}"

    def cron(self) -> str:
        def field(values: set[int]) -> str:
            return ",".join(map(str, sorted(values)))

        hours = "*" if self.hours is None else field(self.hours)
        return f"{field(self.minutes)} {hours} * * {field(self.weekdays)}"

    def window(self) -> Window:
        return Window(self.cron(), self.length, str(self.tz))

    def shows(self, wall: datetime) -> bool:
        hour = self.hours is None or wall.hour in self.hours
        return wall.minute in self.minutes and hour and (wall.weekday() + 1) % 7 in self.weekdays

    def opens(self, wall: datetime, skipped: list[datetime], shown: set[datetime]) -> bool:
        """Whether this minute opens the window: the clock comes to show an opening, or has just jumped over
        one.

        + shown: the openings that the clock has shown before, which it adds to
        """
        if self.hours is None:
            return self.shows(wall)
        if self.shows(wall) and wall not in shown:
            shown.add(wall)
            return True
        return any(map(self.shows, skipped))

    def openings(self, start: datetime, end: datetime) -> list[datetime]:
        return openings([self], start, end)[0]

    def open_minutes(self, start: datetime, end: datetime) -> set[datetime]:
        opened: set[datetime] = set()
        for opening in self.openings(start - self.length - DAY, end):
            length = self.length // MINUTE
            opened |= {opening + MINUTE * n for n in range(length) if start <= opening + MINUTE * n < end}
        return opened


def openings(references: list[Reference], start: datetime, end: datetime) -> list[list[datetime]]:
    """When each window opens: one walk along the clock of their zone, every minute of it, shown to all of
    them.
    """
    tz, now = references[0].tz, start
    found: list[list[datetime]] = [[] for _ in references]
    watching = [(reference, found[n], set[datetime]()) for n, reference in enumerate(references)]
    due = start.astimezone(tz).replace(tzinfo=None)  # what the clock shows next, unless it jumps
    while now < end:
        wall = now.astimezone(tz).replace(tzinfo=None)
        skipped = [due + MINUTE * n for n in range((wall - due) // MINUTE)] if wall > due else []
        for reference, opened, shown in watching:
            if reference.opens(wall, skipped, shown):
                opened.append(now)
        now, due = now + MINUTE, wall + MINUTE
    return found


def minutes_of(parts: list[Interval]) -> set[datetime]:
    return {part.start + MINUTE * n for part in parts for n in range((part.end - part.start) // MINUTE)}


def odd_nights(zone: str) -> list[datetime]:
    """Every moment from 2026 to 2030 at which the zone's offset changes, to the hour."""
    tz, now, found = ZoneInfo(zone), BEGIN, []
    while now < END:
        if now.astimezone(tz).utcoffset() != (now + HOUR).astimezone(tz).utcoffset():
            found.append(now)
        now += HOUR
    return found


@st.composite
def references(draw: st.DrawFn) -> Reference:
    minutes = draw(st.sets(st.integers(0, 59), min_size=1, max_size=3))
    hours = draw(st.one_of(st.none(), st.sets(st.integers(0, 23), min_size=1, max_size=4)))
    weekdays = draw(st.one_of(st.just(set(range(7))), st.sets(st.integers(0, 6), min_size=1)))
    length = MINUTE * draw(st.integers(1, 60 * 30))
    return Reference(draw(st.sampled_from(ZONES)), minutes, hours, weekdays, length)


def computed(reference: Reference, start: datetime, end: datetime) -> set[datetime]:
    return minutes_of(open_between([reference.window()], start, end))


@pytest.mark.thorough
@settings(max_examples=30, deadline=None)
@given(references(), st.data())
def test_agrees_with_the_reference_around_the_odd_nights(reference: Reference, data: st.DataObject) -> None:
    nights = odd_nights(str(reference.tz)) or [datetime(2028, 2, 29, tzinfo=UTC)]
    start = data.draw(st.sampled_from(nights)) - DAY
    end = start + 2 * DAY
    assert computed(reference, start, end) == reference.open_minutes(start, end), reference


@settings(max_examples=25, deadline=None)
@given(references(), st.integers(0, (END - BEGIN) // MINUTE))
def test_agrees_with_the_reference_on_any_day(reference: Reference, minute: int) -> None:
    start = BEGIN + MINUTE * minute
    assert computed(reference, start, start + DAY) == reference.open_minutes(start, start + DAY), reference


@pytest.mark.thorough
@pytest.mark.parametrize(
    "zone", [zone if zone in ODD else pytest.param(zone, marks=pytest.mark.full) for zone in ZONES]
)
def test_agrees_with_the_reference_minute_by_minute_from_2026_to_2030(zone: str) -> None:
    references = [
        Reference(zone, minutes, hours, set(range(7)), length)
        for minutes, hours, length in (
            ({30}, {2}, 3 * HOUR),
            ({0}, {0}, 90 * MINUTE),
            ({15}, {1, 23}, 26 * HOUR),
        )
    ]
    inner = [date(2026, 1, 2) + DAY * n for n in range(365 * 5 - 1)]
    for reference, opened in zip(references, openings(references, BEGIN, END), strict=True):
        per_day = Counter(opening.astimezone(reference.tz).date() for opening in opened)
        assert all(per_day[day] == len(reference.hours or ()) for day in inner)
        parts = open_between([reference.window()], BEGIN, END)
        lasting = [Interval(opening, opening + reference.length) for opening in opened]
        # the first two days are open by openings of the year before, which the walk has not seen
        assert minute_by_minute(parts)[2 * DAY // MINUTE :] == minute_by_minute(lasting)[2 * DAY // MINUTE :]


def minute_by_minute(parts: list[Interval]) -> bytearray:
    """A byte for each minute of the five years: 1 where it is open."""
    marked = bytearray((END - BEGIN) // MINUTE)
    for part in parts:
        first, last = (part.start - BEGIN) // MINUTE, (min(part.end, END) - BEGIN) // MINUTE
        marked[first:last] = b"\1" * (last - first)
    return marked


@pytest.mark.thorough
@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("cron", ["30 2 * * *", "0 0 * * *", "15 1 * * *", "45 23 * * *"])
def test_every_night_has_its_one_opening(zone: str, cron: str) -> None:
    tz = ZoneInfo(zone)
    parts = open_between([Window(cron, 10 * MINUTE, zone)], BEGIN - 2 * DAY, END + 2 * DAY)
    days = [part.start.astimezone(tz).date() for part in parts]
    wanted = [date(2026, 1, 1) + DAY * n for n in range(365 * 5 + 1)]
    assert [day for day in days if wanted[0] <= day <= wanted[-1]] == wanted


def berlin(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin"))


def nightly(*closed: Days | Interval, cron: str = "0 22 * * *", hours: int = 6) -> Window:
    return Window(cron, hours * HOUR, "Europe/Berlin", closed)


def test_an_opening_in_the_gap_comes_right_after_it_and_in_the_fold_the_first_time() -> None:
    window = Window("30 2 * * *", HOUR, "Europe/Berlin")
    assert state([window], berlin("2026-03-28T12:00")).next[0].isoformat() == "2026-03-29T03:00:00+02:00"
    assert state([window], berlin("2026-10-24T12:00")).next[0].isoformat() == "2026-10-25T02:30:00+02:00"


def test_durations_are_absolute_time() -> None:
    night = state([Window("0 0 * * *", 3 * HOUR, "Europe/Berlin")], berlin("2026-03-29T00:30"))
    assert night.closes is not None and night.closes.isoformat() == "2026-03-29T04:00:00+02:00"
    night = state([Window("0 0 * * *", 3 * HOUR, "Europe/Berlin")], berlin("2026-10-25T00:30"))
    assert night.closes is not None and night.closes.isoformat() == "2026-10-25T02:00:00+01:00"


def test_a_day_that_a_zone_skipped_moves_its_opening_to_the_next_moment() -> None:
    apia = state([Window("0 5 30 12 *", HOUR, "Pacific/Apia")], datetime(2011, 12, 29, tzinfo=UTC))
    assert apia.next[0].isoformat() == "2011-12-31T00:00:00+14:00"


def test_every_hour_means_every_hour_that_passes() -> None:
    window = Window("15 * * * *", MINUTE, "Europe/Berlin")
    fold = open_between(
        [window], berlin("2026-10-25T00:00").astimezone(UTC), berlin("2026-10-25T06:00").astimezone(UTC)
    )
    assert len(fold) == 7
    gap = open_between(
        [window], berlin("2026-03-29T00:00").astimezone(UTC), berlin("2026-03-29T06:00").astimezone(UTC)
    )
    assert len(gap) == 5
    assert {later.start - part.start for part, later in pairwise(fold)} == {HOUR}


def test_an_exception_closes_its_day_and_what_opens_on_it() -> None:
    windows = [nightly(parse_days("2026-12-24"))]
    eve = state(windows, berlin("2026-12-23T23:00"))
    assert eve.open and eve.closes == berlin("2026-12-24T00:00")
    assert not state(windows, berlin("2026-12-24T02:00")).open  # runs on from the 23rd
    assert not state(windows, berlin("2026-12-25T02:00")).open  # would have opened on the 24th
    closed = state(windows, berlin("2026-12-24T23:00"))
    assert "an exception" in closed.reason
    assert closed.next[0] == berlin("2026-12-25T22:00")


def test_a_timed_exception_cuts_its_hours_out() -> None:
    cut = Interval(berlin("2026-06-01T23:00"), berlin("2026-06-02T01:00"))
    window = nightly(cut)
    assert state([window], berlin("2026-06-01T22:30")).closes == berlin("2026-06-01T23:00")
    assert state([window], berlin("2026-06-01T23:00")).next[0] == berlin("2026-06-02T01:00")


@pytest.mark.thorough
def test_an_exception_may_last_until_further_notice() -> None:
    for zone in ("Europe/Berlin", "America/New_York", "Asia/Tokyo", "UTC"):
        frozen = Window("0 22 * * *", 6 * HOUR, zone, (parse_days("2026-12-24..9999-12-31"),))
        before = datetime(2026, 12, 20, 12, tzinfo=ZoneInfo(zone))
        assert [opening.day for opening in state([frozen], before).next] == [20, 21, 22, 23]
        found = state([frozen], before + 5 * DAY)
        assert (found.open, found.next) == (False, ()) and not state([frozen], before + 400 * DAY).open
        always = Window("0 22 * * *", 6 * HOUR, zone, (parse_days("0001-01-01..9999-12-31"),))
        assert state([always], before).next == ()


def test_a_timed_exception_may_begin_and_end_beyond_the_calendar() -> None:
    first = datetime(1, 1, 1, tzinfo=ZoneInfo("Asia/Tokyo"))
    last = datetime(9999, 12, 31, 23, tzinfo=ZoneInfo("America/New_York"))
    assert state([nightly(Interval(first, berlin("2026-06-01T23:00")))], berlin("2026-06-01T23:30")).open
    assert state([nightly(Interval(berlin("2026-06-01T23:00"), last))], berlin("2026-06-01T23:30")).next == ()


def test_deny_windows_win_over_all_others() -> None:
    deny = Window("0 0 1 * *", 6 * HOUR, "Europe/Berlin", deny=True)
    windows = [nightly(), nightly(cron="0 1 * * *"), deny]
    assert state(windows, berlin("2026-06-30T23:00")).closes == berlin("2026-07-01T00:00")
    denied = state(windows, berlin("2026-07-01T02:00"))
    assert not denied.open and "denied" in denied.reason
    assert denied.next[0] == berlin("2026-07-01T06:00")  # what is left of the window from 01:00 to 07:00


def test_windows_add_up_and_touching_ones_are_one() -> None:
    windows = [nightly(hours=2), nightly(cron="0 0 * * *", hours=2)]
    found = state(windows, berlin("2026-06-01T22:00"))
    assert found.closes == berlin("2026-06-02T02:00")
    assert found.next[0] == berlin("2026-06-02T22:00")


def test_last_start_leaves_room_for_the_switch_and_its_rollback() -> None:
    found = state([nightly()], berlin("2026-06-01T23:00"), needed=90 * MINUTE)
    assert found.last_start == berlin("2026-06-02T02:30")
    late = state([nightly()], berlin("2026-06-02T03:00"), needed=90 * MINUTE)
    assert late.open and "too late to begin" in late.reason and "1h30m" in late.reason


def test_the_end_of_a_window_is_closed_and_its_beginning_open() -> None:
    assert state([nightly()], berlin("2026-06-01T22:00")).open
    assert not state([nightly()], berlin("2026-06-02T04:00")).open


@pytest.mark.thorough
def test_no_window_is_any_time_and_an_endless_one_never_closes() -> None:
    assert state([], berlin("2026-06-01T12:00")).open
    endless = state([Window("0 * * * *", 2 * HOUR, "Europe/Berlin")], berlin("2026-06-01T12:00"))
    assert (endless.open, endless.closes, endless.last_start, endless.next) == (True, None, None, ())


def test_rare_windows_are_found_and_never_more_than_five() -> None:
    leap = state([Window("0 0 29 2 *", HOUR, "Europe/Berlin")], berlin("2026-06-01T12:00"))
    assert [opening.year for opening in leap.next] == [2028, 2032, 2036, 2040, 2044]
    late = state([Window("0 0 29 2 *", HOUR, "Europe/Berlin")], berlin("2088-03-01T12:00"))
    assert [opening.year for opening in late.next] == [2092, 2096, 2104, 2108, 2112]
    assert len(state([nightly()], berlin("2026-06-01T12:00")).next) == 5


@pytest.mark.thorough
@settings(max_examples=50, deadline=None)
@given(references(), st.datetimes(datetime(2026, 1, 1), datetime(2030, 12, 31)), st.integers(0, 600))
def test_a_state_never_contradicts_itself(reference: Reference, naive: datetime, needed: int) -> None:
    at = naive.replace(tzinfo=UTC)
    found = state([reference.window()], at, needed * MINUTE)
    assert list(found.next) == sorted(set(found.next)) and all(opening > at for opening in found.next)
    assert found.reason
    assert found.open or (found.closes is None and found.last_start is None)
    if found.closes is not None and found.last_start is not None:
        assert at < found.closes and found.closes - found.last_start == needed * MINUTE
        assert not found.next or found.closes < found.next[0]


@pytest.mark.parametrize(
    ("cron", "message"),
    [
        ("0 25 * * *", "bad hour"),
        ("0 2 31 2 *", "impossible"),
        ("0 2 * *", "five fields"),
        ("0 0 2 * * *", "five fields"),
        ("", "five fields"),
        ("@daily", "five fields"),
    ],
)
def test_impossible_cron_lines_are_refused(cron: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Window(cron, HOUR, "Europe/Berlin")


@pytest.mark.parametrize(
    "zone",
    [
        "Europe/Berln",
        "",
        "../../etc/passwd",
        "/etc/localtime",
        "Mars/Base",
        "localtime",
        "right/Europe/Berlin",
    ],
)
def test_unknown_timezones_are_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="unknown timezone"):
        Window("0 2 * * *", HOUR, zone)


def test_windows_that_last_nothing_or_too_long_are_refused() -> None:
    for length in (timedelta(0), -HOUR, timedelta(days=8)):
        with pytest.raises(ValueError, match="lasts"):
            Window("0 2 * * *", length, "Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("3h", 3 * HOUR),
        ("90m", 90 * MINUTE),
        ("1h30m", 90 * MINUTE),
        ("1d 2h", 26 * HOUR),
        (5400, 90 * MINUTE),
    ],
)
def test_durations_are_read(text: object, length: timedelta) -> None:
    assert parse_duration(text) == length
    assert parse_duration(shown_duration(length)) == length


@pytest.mark.parametrize("text", ["", "3", "h", "3 hours", "-3h", True, None, [], "3h\n90m;"])
def test_other_durations_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize("value", ["99999999999d", 10**400, float("inf"), -1e12, timedelta.max])
def test_durations_that_no_date_can_be_counted_back_from_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="at most 100 years"):
        parse_duration(value)


@pytest.mark.parametrize("text", ["2026-13-01", "24.12.2026", "2026-12-24..", "..2026-12-24", 3, None, True])
def test_other_exceptions_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="exception"):
        parse_days(text)


def test_ranges_have_both_ends_and_an_order() -> None:
    assert parse_days("2026-12-24..2027-01-01") == Days(date(2026, 12, 24), date(2027, 1, 1))
    with pytest.raises(ValueError, match="ends before"):
        parse_days("2027-01-01..2026-12-24")


def test_opening_as_long_as_a_switch_has_no_room_for_the_run_that_begins_it() -> None:
    at, needed = datetime(2026, 6, 1, tzinfo=UTC), timedelta(minutes=45)

    def never(minutes: int) -> str:
        return never_begins([Window("0 2 * * *", timedelta(minutes=minutes), "UTC")], at, needed)

    assert "beside 1m in which a run begins" in never(45)
    assert never(46) == ""
