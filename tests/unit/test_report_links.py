"""The page's links lead to places on it, and its filters hide by marks, without a script."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import nights
import pytest

from pyinfra_vllm.asking import Answer
from pyinfra_vllm.report.looking import Look
from pyinfra_vllm.report.page import render

EVIL = '"><script>alert(1)</script>'


@pytest.fixture
def page(fleet: list[Answer[Look]]) -> str:
    return render("prod", fleet, nights.MORNING)


def with_service(answer: Answer[Look], name: str) -> Answer[Look]:
    """The same host with a second service that looks like its first."""
    look = copy.deepcopy(answer.value)
    assert look is not None
    running = [*look.running, replace(look.running[0], service=name)]
    record = {**look.record, name: {**look.record["chat"], "service": name}}
    return replace(answer, value=replace(look, running=running, record=record))


def part(page: str, place: str) -> str:
    """From the element with that id to the next one with an id."""
    return re.split(r'id="[hns][0-9]+"', page.split(f'id="{place}"')[1])[0]


def links(text: str) -> list[str]:
    return re.findall(r'<a href="#([^"]+)"', text)


@pytest.mark.thorough
def test_every_link_leads_to_one_place_on_the_page(page: str) -> None:
    places = re.findall(r' id="([^"]+)"', page)
    assert len(places) == len(set(places))
    assert len(links(page)) > 24 * 3 and set(links(page)) <= set(places)


@pytest.mark.thorough
def test_a_host_leads_to_its_nights_its_newest_switch_and_back(page: str) -> None:
    place = re.search(r'id="(h[0-9]+)"(?:(?!</tbody>).)*<b>gpu-03</b>', page, re.DOTALL)
    assert place is not None
    row = part(page, place[1])
    switch, trend = links(row)
    assert "<b>gpu-03</b>" in part(page, trend) and links(part(page, trend)) == [place[1]]
    assert "gpu-03 in the fleet" in part(page, switch) and "rolled_back" in row
    assert "--kv-cache-dtype" in part(page, switch)
    assert links(part(page, switch)) == [place[1], trend]


@pytest.mark.thorough
def test_the_filters_count_the_hosts_that_they_show(page: str) -> None:
    assert re.findall(r'<label for="show-([a-z]+)">([^<]+)</label>', page) == [
        ("all", "all: 24"), ("look", "need a look: 4"), ("back", "went back: 2"),
    ]  # fmt: skip
    rows = re.findall(r'<tbody id="h[0-9]+" data-show="([^"]*)"', page)
    assert rows == ["look", "look", "look back", "look back", *[""] * 20]
    assert page.count('data-show="look back"') == 2 * (1 + 1 + 3)  # each in the fleet, its nights, 3 switches
    for name in ("look", "back"):
        rule = rf'body:has\(#show-{name}:checked\) \[data-show\]:not\(\[data-show~="{name}"\]\)'
        assert re.search(rule, page)


def test_a_host_that_went_back_needs_a_look_however_it_is_now(fleet: list[Answer[Look]]) -> None:
    back = next(answer for answer in fleet if answer.host == "gpu-03")
    assert back.value is not None
    look = replace(back.value, wishes=None)  # nothing is declared that it could differ from
    text = render("prod", [replace(back, value=look)], nights.MORNING)
    assert 'data-show="look back"' in text and '<span class="badge ok">ok</span>' in text


@pytest.mark.thorough
def test_services_have_a_filter_where_there_are_several(fleet: list[Answer[Look]], page: str) -> None:
    assert 'id="service-0"' not in page
    text = render("prod", [with_service(fleet[0], EVIL), *fleet[1:]], nights.MORNING)
    assert re.findall(r'<label for="service-([0-9]+)">([^<]+)</label>', text) == [
        ("0", "&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;"), ("1", "chat"),
    ]  # fmt: skip
    style = text.partition("</style>")[0]
    assert 'body:has(#service-1:checked) [data-service]:not([data-service="1"]) { display: none; }' in style
    assert "alert" not in style and "<script" not in text
    assert text.count('data-service="0"') == style.count('data-service="0"') + 3
    down = re.findall(r'<tbody id="h[0-9]+" data-show="look">', text)
    assert len(down) == 1  # nobody knows which services it has: each filter shows it


def test_switches_of_a_service_that_is_not_observed_are_shown(fleet: list[Answer[Look]]) -> None:
    """A host may lie, and a service may be removed between two questions."""
    both = with_service(fleet[0], "gone")
    assert both.value is not None
    look = replace(both.value, running=both.value.running[:1])
    text = render("prod", [replace(both, value=look)], nights.MORNING)
    assert text.count('<details class="card switch"') == 2 and '<label for="service-1">gone</label>' in text
    assert len(re.findall(r'<tbody id="h', text)) == 1
