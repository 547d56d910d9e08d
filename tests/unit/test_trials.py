"""When the trials of a tuning would begin: never outside a window, never too late to go back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_estimate import committed, rolled_back, service

from pyinfra_vllm.rollout.estimate import estimate, restarts
from pyinfra_vllm.rollout.trials import MOST_NIGHTS, nights
from pyinfra_vllm.window import Window, open_between

NIGHTLY = Window("0 2 * * *", timedelta(hours=3), "Europe/Berlin")
NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
LENGTHS = st.lists(st.integers(1, 240).map(lambda minutes: timedelta(minutes=minutes)), max_size=40)


def test_trials_fill_a_night_and_go_on_the_next() -> None:
    found = nights([NIGHTLY], NOON, [timedelta(minutes=50)] * 5)
    assert [[f"{start:%d %H:%M}" for start in night.starts] for night in found] == [
        ["30 02:00", "30 02:50", "30 03:40"],
        ["01 02:00", "01 02:50"],
    ]


def test_open_window_is_used_at_once_and_as_far_as_it_goes() -> None:
    at = datetime(2026, 11, 30, 2, 30, tzinfo=UTC)  # 3:30 in Berlin
    (first, second) = nights([NIGHTLY], at, [timedelta(minutes=60)] * 2)
    assert [f"{start:%d %H:%M}" for night in (first, second) for start in night.starts] == [
        "30 03:30",
        "01 02:00",
    ]


def test_without_a_window_all_of_them_follow_each_other() -> None:
    (night,) = nights([], NOON, [timedelta(hours=1)] * 100)
    assert len(night.starts) == 100 and night.closes is None and night.starts[0] == NOON


def test_what_never_fits_holds_up_what_comes_after_it() -> None:
    lengths = [timedelta(hours=1), timedelta(hours=4), timedelta(minutes=1)]
    found = nights([NIGHTLY], NOON, lengths)
    assert [len(night.starts) for night in found] == [1]
    assert nights([Window("0 2 1 1 *", timedelta(hours=3), "UTC", deny=True)], NOON, lengths) == []


def test_night_of_the_clock_change_has_another_hour() -> None:
    autumn = datetime(2026, 10, 24, 12, tzinfo=UTC)
    (night, *_) = nights([NIGHTLY], autumn, [timedelta(hours=1)] * 3)
    assert [f"{start:%H:%M %Z}" for start in night.starts] == ["02:00 CEST", "02:00 CET", "03:00 CET"]


@pytest.mark.thorough
@settings(max_examples=60, deadline=None)
@given(
    lengths=LENGTHS,
    hour=st.integers(0, 23),
    hours=st.integers(1, 5),
    days=st.sampled_from(["*", "TUE", "MON-FRI"]),
)
def test_every_trial_is_over_before_its_window_closes(
    lengths: list[timedelta], hour: int, hours: int, days: str
) -> None:
    window = Window(f"0 {hour} * * {days}", timedelta(hours=hours), "Europe/Berlin")
    starts = [start for night in nights([window], NOON, lengths) for start in night.starts]
    assert len(starts) <= len(lengths)
    until = NOON
    for start, length in zip(starts, lengths, strict=False):
        assert start >= until
        until = start + length
        assert any(
            each.start <= start and until <= each.end
            for each in open_between([window], NOON - timedelta(days=1), until + timedelta(hours=6))
        )
    fits = all(length <= timedelta(hours=hours) for length in lengths)
    if fits and len(lengths) <= MOST_NIGHTS:
        assert len(starts) == len(lengths)


def test_restarts_are_a_switch_and_its_rollback_without_the_measuring() -> None:
    known = restarts(service(), [committed(10), rolled_back(6, 4)])
    assert known.source == "measured here in 2 switches"
    assert known.length < estimate(service(), [committed(10), rolled_back(6, 4)]).length
    guessed = restarts(service(switch_estimate="30m"))
    assert guessed.length == timedelta(minutes=20)
    assert guessed.source == "two thirds of the estimate of a switch, declared"


@pytest.mark.parametrize("minutes", [5.0, 20.0])
def test_restarts_follow_the_record(minutes: float) -> None:
    measured = restarts(service(), [rolled_back(minutes, minutes)])
    assert measured.length == timedelta(minutes=2 * minutes * 1.5)
