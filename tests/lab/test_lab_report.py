"""The report in a real browser: it renders at every width and in both schemes, asks for nothing, complains of
nothing.

PYINFRA_VLLM_SCREENSHOT=docs/report.png also takes the picture that the documentation shows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import browser

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import nights

from pyinfra_vllm.report.page import render

CHROMIUM = browser.installed()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)"
)

DRAWN = (
    "[...document.querySelectorAll('details[open] svg')].map(it => it.getBoundingClientRect()).filter(it =>"
    " it.width > 100 && it.height > 40).length"
)
SIDEWAYS = "document.documentElement.scrollWidth - window.innerWidth"
CUT = (
    "[...document.querySelectorAll('table.fleet')].filter(it =>"
    " it.scrollWidth > it.parentNode.clientWidth).length"
)
PAPER = "getComputedStyle(document.body).backgroundColor"
SMALLEST_TEXT = (
    "Math.min(...[...document.querySelectorAll('details[open] svg text')].map(it =>"
    " it.getBoundingClientRect().height))"
)


def seen(selector: str) -> str:
    """How many elements of that kind are shown."""
    return (
        f"[...document.querySelectorAll('{selector}')].filter(it =>"
        " it.getBoundingClientRect().height > 0).length"
    )


def written(place: Path, fleet: Callable[[Path, pytest.MonkeyPatch], list[Any]]) -> str:
    """The address of the report of a made fleet."""
    hosts = place / "fleet"
    hosts.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        text = render("inventory/prod.py", fleet(hosts, patch), nights.MORNING)
    path = place / "index.html"
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("report"), nights.fleet)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("large"), nights.fleet_of_24)


@pytest.fixture
def tab() -> Iterator[browser.Page]:
    assert CHROMIUM is not None
    with browser.page(CHROMIUM) as page:
        yield page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 390])
def test_it_renders_and_loads_nothing(tab: browser.Page, report: str, width: int, scheme: str) -> None:
    tab.open(report, width, 900, scheme)
    assert tab.ask(DRAWN) == 8  # a timeline, six distributions, the intervals
    assert tab.ask(SIDEWAYS) <= 0 and tab.ask(CUT) == 0
    assert tab.ask(SMALLEST_TEXT) >= 8
    assert tab.ask(PAPER) == {"light": "rgb(246, 247, 249)", "dark": "rgb(18, 22, 28)"}[scheme]
    assert [address for address in tab.requests if not address.startswith("data:")] == [report]
    assert tab.complaints == []


def test_the_browser_would_have_told_of_a_request_and_of_an_error(tab: browser.Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("no")</script>')
    tab.open(bad.as_uri(), 800, 600, "light")
    assert "http://127.0.0.1:9/x.png" in tab.requests and tab.complaints


def test_every_switch_unfolds(tab: browser.Page, report: str) -> None:
    tab.open(report, 1100, 900, "light")
    assert tab.ask("document.querySelectorAll('details.switch').length") == 4
    tab.ask("document.querySelectorAll('details').forEach(it => { it.open = true })")
    assert tab.ask(DRAWN) == 4 * 8
    assert tab.ask(SIDEWAYS) <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1120, 390])
def test_24_hosts_fit_and_load_nothing(tab: browser.Page, large: str, width: int, scheme: str) -> None:
    tab.open(large, width, 900, scheme)
    assert tab.ask(SIDEWAYS) <= 0 and tab.ask(CUT) == 0
    assert tab.ask(seen("table.fleet:not(.nights) tbody")) == 24
    assert tab.ask(seen("svg.trend")) == 23 * 3
    assert [address for address in tab.requests if not address.startswith("data:")] == [large]
    assert tab.complaints == []


def test_filters_leave_only_the_hosts_that_they_name(tab: browser.Page, large: str) -> None:
    tab.open(large, 1120, 900, "light")
    found = {}
    for name in ("look", "back", "all"):
        tab.ask(f"document.querySelector('label[for=show-{name}]').click()")
        found[name] = [
            tab.ask(seen(item))
            for item in ("table.fleet:not(.nights) tbody", ".nights tbody", "details.switch")
        ]
    assert found == {"look": [4, 3, 7], "back": [2, 2, 6], "all": [24, 23, 27]}


def test_the_link_of_a_last_switch_unfolds_it(tab: browser.Page, large: str) -> None:
    tab.open(large, 1120, 900, "light")
    tab.ask("document.querySelector('.fleet a[href^=\"#s\"]').click()")
    opened = "document.querySelector(location.hash).closest('details')"
    assert tab.ask(f"{opened}.open") and "gpu-20" in tab.ask(f"{opened}.querySelector('.where').innerText")


@pytest.mark.skipif("PYINFRA_VLLM_SCREENSHOT" not in os.environ, reason="no screenshot was asked for")
def test_take_the_screenshot_of_the_documentation(tab: browser.Page, report: str) -> None:
    path = Path(os.environ["PYINFRA_VLLM_SCREENSHOT"])
    tab.open(report, 1120, 1820, "light")
    tab.picture(path)
    assert path.stat().st_size > 50_000
