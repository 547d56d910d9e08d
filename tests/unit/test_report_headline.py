"""The report's first lines for a fleet of 24 hosts: the sentence, its period, and the hosts by severity."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import nights
import pytest

from pyinfra_vllm.asking import Answer
from pyinfra_vllm.on_host.switch.order import ROLLBACK
from pyinfra_vllm.report.headline import by_severity, headline, period, went_back
from pyinfra_vllm.report.history import Switch, moment, switches
from pyinfra_vllm.report.looking import Look
from pyinfra_vllm.report.page import render
from pyinfra_vllm.report.status import CHANGING, DOWN, DRIFT, UNPROVEN, Row, rows

ZURICH = ZoneInfo("Europe/Zurich")
LAST_NIGHT = period(nights.MORNING, ZURICH)


def switched(host: str, outcome: str, purpose: str = "rollout", at: str = "2026-11-21T01:00:00Z") -> Switch:
    return Switch(at, host, "chat", "t", "alice", purpose, "old", "new", outcome)


def test_the_fleet_in_one_sentence(fleet: list[Answer[Look]]) -> None:
    told = headline(rows(fleet), switches(fleet), LAST_NIGHT)
    assert told == "2 of 24 hosts went back last night, 1 is down, 1 does not serve."
    week = period(nights.MORNING, ZURICH, moment("2026-11-14T00:00Z"))
    told = headline(rows(fleet), switches(fleet), week)
    assert told.startswith("2 of 24 hosts went back since 2026-11-14 01:00, 1 is down")


@pytest.mark.parametrize(
    ("states", "done", "sentence"),
    [
        ({}, [], "All 3 hosts serve as declared; no switch last night."),
        ({}, [("a", "committed"), ("b", "committed")],
         "All 3 hosts serve as declared; 2 took a new release last night."),
        ({"a": DOWN, "b": DOWN}, [("c", "committed")],
         "2 of 3 hosts are down, 1 took a new release last night."),
        ({"a": DRIFT}, [("a", "rolled_back")], "1 of 3 hosts went back last night."),
        ({"a": DRIFT, "b": DRIFT}, [("a", "rolled_back")],
         "1 of 3 hosts went back last night, 1 differs from its declaration."),
        ({"a": UNPROVEN}, [("a", "restore_failed")],
         "1 of 3 hosts went back last night, 1 runs an unproven release."),
        ({"c": CHANGING}, [("a", "committed", ROLLBACK)],
         "1 of 3 hosts was rolled back by hand, 1 is switching now."),
    ],
)  # fmt: skip
def test_each_state_has_its_words(states: dict[str, str], done: list[tuple[str, ...]], sentence: str) -> None:
    found = [Row(host, "chat", states.get(host, "ok")) for host in "abc"]
    assert headline(found, [switched(*item) for item in done], LAST_NIGHT) == sentence


def test_one_host_is_no_crowd_and_an_unknown_declaration_is_not_kept() -> None:
    alone = headline([Row("a", "chat")], [], LAST_NIGHT)
    assert alone == "The host serves as declared; no switch last night."
    assert headline([Row("a", state=DOWN)], [], LAST_NIGHT) == "The host is down."
    pair = [Row("a", "chat"), Row("b", "chat")]
    assert headline(pair, [], LAST_NIGHT, declared=False) == "All 2 hosts serve; no switch last night."


def test_last_night_begins_at_noon_of_the_day_before() -> None:
    assert LAST_NIGHT.began.isoformat() == "2026-11-20T12:00:00+01:00"
    assert (LAST_NIGHT.words, LAST_NIGHT.ended) == ("last night", nights.MORNING)
    evening = period(datetime(2026, 11, 21, 20, tzinfo=UTC), ZURICH)
    assert (evening.words, evening.began) == ("since yesterday noon", LAST_NIGHT.began)
    summer_time_begins = period(datetime(2026, 3, 29, 6, tzinfo=UTC), ZURICH)
    assert summer_time_begins.began.isoformat() == "2026-03-28T12:00:00+01:00"
    early = (LAST_NIGHT.began - timedelta(seconds=1)).isoformat()
    assert switched("a", "rolled_back", at=early) not in LAST_NIGHT
    assert switched("a", "rolled_back") in LAST_NIGHT


def test_hosts_stand_by_severity_and_those_that_went_back_before_their_equals(
    fleet: list[Answer[Look]],
) -> None:
    found = by_severity(rows(fleet), went_back(item for item in switches(fleet) if item in LAST_NIGHT))
    assert [row.host for row in found[:6]] == ["gpu-09", "gpu-20", "gpu-03", "gpu-17", "gpu-01", "gpu-02"]
    assert len(found) == 24
    equal = [Row("a", "x", DRIFT), Row("b", "x", DRIFT), Row("c", "x"), Row("c", "y", DRIFT), Row("d", "x")]
    told = [(row.host, row.service) for row in by_severity(equal, {"b"})]
    assert told == [("b", "x"), ("a", "x"), ("c", "y"), ("c", "x"), ("d", "x")]


@pytest.mark.thorough
def test_the_page_begins_with_the_sentence_its_period_and_the_worst_host(fleet: list[Answer[Look]]) -> None:
    text = render("prod", fleet, nights.MORNING, zone=ZURICH)
    assert '<p class="headline">2 of 24 hosts went back last night, 1 is down, 1 does not serve.</p>' in text
    assert "2026-11-20 12:00 CET to 2026-11-21 08:30 CET" in text
    shown = re.findall(r"<b>(gpu-\d+)</b></a>", text)
    assert shown[:4] == ["gpu-09", "gpu-20", "gpu-03", "gpu-17"] and len(set(shown)) == len(shown[:24]) == 24
    assert " UTC" not in text.replace("as the hosts told", "")


def test_switches_that_may_be_missing_are_counted(fleet: list[Answer[Look]]) -> None:
    (one,) = [answer for answer in fleet if answer.host == "gpu-03"]
    assert one.value is not None
    newest = replace(one.value, record={"chat": {**one.value.record["chat"], "older": 4}})
    week = moment("2026-11-14T00:00Z")
    assert "4 older switches" in render("x", [Answer("a", newest)], nights.MORNING, since=week)
    assert "older switches" not in render("x", [Answer("a", newest)], nights.MORNING)
