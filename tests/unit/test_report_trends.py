"""The trends of a service over nights: the values of the release that serves, and their pictures."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from datetime import UTC, date, datetime
from xml.etree import ElementTree
from zoneinfo import ZoneInfo

import nights
import pytest

from pyinfra_vllm.asking import Answer
from pyinfra_vllm.report import plots
from pyinfra_vllm.report.evidence import Samples, Shown
from pyinfra_vllm.report.history import Switch
from pyinfra_vllm.report.looking import Look
from pyinfra_vllm.report.page import render, shown_switches
from pyinfra_vllm.report.plots import Point
from pyinfra_vllm.report.trends import Trend, newest, night_of, picture, span, trends

FIRST, SECOND, THIRD = date(2026, 11, 18), date(2026, 11, 19), date(2026, 11, 20)
ZURICH = ZoneInfo("Europe/Zurich")


def switched(at: str, outcome: str, *samples: Samples, away_s: float = 60.0) -> Shown:
    switch = Switch(at, "a", "chat", "t", "alice", "rollout", "old", "new", outcome)
    return Shown(switch, (), (), away_s, samples=samples)


def rate(streams: int, before: float, after: float) -> Samples:
    return Samples("", ("tokens_per_s", f"c{streams}"), streams, "", (before,) * 3, (after,) * 3)


def first(streams: int, before: float, after: float) -> Samples:
    return Samples("", ("ttft_s", f"c{streams}"), streams, "", (before,) * 3, (after,) * 3)


def only(*shown: Shown) -> Trend:
    ((key, trend),) = trends(shown, UTC).items()
    assert key == ("a", "chat")
    return trend


@pytest.mark.thorough
def test_every_host_has_its_three_nights(fleet: list[Answer[Look]]) -> None:
    found = trends(shown_switches(fleet), ZURICH)
    assert len(found) == 23 and ("gpu-09", "chat") not in found
    back, kept = found["gpu-03", "chat"], found["gpu-01", "chat"]
    assert [(night.day, night.went_back) for night in back.nights] == [
        (FIRST, True), (SECOND, False), (THIRD, True),
    ]  # fmt: skip
    assert [night.day for night in kept.nights] == [SECOND]
    assert back.at == {"tokens_per_s": "8 streams", "ttft_ms": "1 stream"}
    slow, good, still = (night.tokens_per_s or 0 for night in back.nights)
    assert good > slow * 1.02 and still == pytest.approx(good, rel=0.02)
    assert all(20 < (night.ttft_ms or 0) < 40 for night in back.nights)
    assert [night.away_s > 60 for night in back.nights] == [True, False, True]
    assert span(found.values()) == (FIRST, THIRD)


def test_a_night_shows_the_release_that_serves_after_it() -> None:
    kept, back = "committed", "rolled_back"
    trend = only(
        switched("2026-11-20T23:00:00Z", kept, rate(8, 100, 110), away_s=40),
        switched("2026-11-21T02:00:00Z", back, rate(8, 111, 70), away_s=90),
        switched("2026-11-22T02:00:00Z", "refused"),
    )
    first_night, second = trend.nights
    assert (first_night.tokens_per_s, first_night.away_s, first_night.went_back) == (111, 130, True)
    assert (second.tokens_per_s, second.ttft_ms, second.went_back) == (None, None, False)
    assert newest(trend, "tokens_per_s") == "111 tokens/s" and newest(trend, "ttft_ms") == ""


def test_only_one_load_is_compared_that_of_the_newest_measurement() -> None:
    trend = only(
        switched("2026-11-20T01:00:00Z", "committed", rate(8, 1, 800), first(1, 1, 20), first(8, 1, 50)),
        switched("2026-11-21T01:00:00Z", "committed", rate(1, 1, 100), rate(16, 1, 900), first(1, 1, 25)),
    )
    assert trend.at == {"tokens_per_s": "16 streams", "ttft_ms": "1 stream"}
    assert [(night.tokens_per_s, night.ttft_ms) for night in trend.nights] == [(None, 20), (900, 25)]


@pytest.mark.thorough
def test_memory_is_a_trend_where_the_gate_measured_it(fleet: list[Answer[Look]]) -> None:
    both = "<th>GPU memory</th><th>time without service</th></tr>"
    assert both not in render("x", fleet, nights.MORNING)
    (answer,) = [copy.deepcopy(answer) for answer in fleet if answer.host == "gpu-03"]
    assert answer.value is not None
    row = {"name": "gpu_memory_mib", "phase": None, "before": None, "ratio": None, "limit": 70000}
    for number, switch in enumerate(answer.value.record["chat"]["transactions"]):
        row |= {"after": 51200 + 1024 * number, "verdict": "pass", "decides": True}
        switch["evidence"]["verdict"]["metrics"].append(dict(row))
    (trend,) = trends(shown_switches([answer])).values()
    assert [night.memory_mib for night in trend.nights] == [None, 52224, None]
    assert newest(trend, "memory_mib") == "51.0 GiB"
    assert both in render("x", [answer], nights.MORNING)


def test_a_night_lasts_from_noon_to_noon_of_the_reader() -> None:
    assert night_of(datetime(2026, 11, 21, 10, 59, tzinfo=UTC), ZURICH) == THIRD
    assert night_of(datetime(2026, 11, 21, 11, 0, tzinfo=UTC), ZURICH) == date(2026, 11, 21)
    assert night_of(datetime(2026, 11, 20, 23, 59, tzinfo=UTC), ZURICH) == THIRD


def test_a_picture_has_a_point_for_each_night_red_where_a_release_went_back() -> None:
    points = [Point(0, 633.0, "a <night>", False), Point(2, 681.0, "b", True)]
    drawn = ElementTree.fromstring(plots.trend("tokens/s", points, 2))
    dots = drawn.findall(".//circle")
    assert [dot.get("class") for dot in dots] == ["good", "bad"]
    assert [float(dot.get("cx", "")) for dot in dots] == [6.0, 144.0]
    assert float(dots[0].get("cy", "")) > float(dots[1].get("cy", ""))
    assert [title.text for title in drawn.iter("title")] == ["a <night>", "b"]
    assert drawn.get("aria-label") == "tokens/s: a <night>; b"
    assert plots.trend("tokens/s", [], 2) == ""


def test_noise_stays_small_and_bars_begin_at_zero() -> None:
    def heights(*values: float, bars: bool = False) -> list[float]:
        points = [Point(number, value, "", False) for number, value in enumerate(values)]
        drawn = plots.trend("x", points, len(values), bars=bars)
        return [float(found) for found in re.findall(r'V([0-9.]+)"' if bars else r'cy="([0-9.]+)"', drawn)]

    high, low = plots.TREND[1] - 6, 6
    one, other = heights(100, 99)
    assert 0 < other - one < 0.1 * (high - low)
    assert heights(100, 50, bars=True) == [low, (low + high) / 2]
    assert heights(5) == [(low + high) / 2] and heights(0, bars=True) == [high]


@pytest.mark.thorough
def test_the_page_has_the_nights_of_every_host_that_switched(fleet: list[Answer[Look]]) -> None:
    text = render("prod", fleet, nights.MORNING, zone=ZURICH)
    assert "<h2>Nights 2026-11-18 to 2026-11-20</h2>" in text
    assert text.count('<svg class="trend"') == 23 * 3
    assert "2026-11-20: 1 min 41 s" in text
    alone = render("prod", [replace(fleet[8])], nights.MORNING, zone=ZURICH)
    assert "<h2>Nights" not in alone


def test_pictures_share_their_axis() -> None:
    trend = only(switched("2026-11-20T01:00:00Z", "committed", rate(8, 1, 800)))
    early = picture(trend, "tokens_per_s", (date(2026, 11, 19), date(2026, 11, 22)))
    late = picture(trend, "tokens_per_s", (date(2026, 11, 16), date(2026, 11, 19)))
    assert 'cx="6.0"' in early and 'cx="144.0"' in late
