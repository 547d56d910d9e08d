"""The report's plots and page: what is drawn is what was measured, nothing is loaded, nothing breaks the
markup.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from zoneinfo import ZoneInfo

import nights
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from simulated import NEW, OLD
from told import Teller, teller

from pyinfra_vllm.answers import observed
from pyinfra_vllm.asking import Answer
from pyinfra_vllm.commands.report import report
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.on_host.bench.record import Graded, Record
from pyinfra_vllm.on_host.state.observed import Observed
from pyinfra_vllm.on_host.state.transactions import Transaction, without_service_s
from pyinfra_vllm.report import evidence, plots
from pyinfra_vllm.report.history import local
from pyinfra_vllm.report.looking import Look
from pyinfra_vllm.report.page import render, shown_switches
from pyinfra_vllm.report.status import memory_of
from pyinfra_vllm.text import duration, three_digits

__all__ = ["teller"]

EVIL = "\"'><script>alert(1)</script><img src=x>"
VALUES = st.lists(st.floats(0.001, 1e6), min_size=0, max_size=60)


def numbers(svg: str) -> list[float]:
    return [float(found) for found in re.findall(r'(?:x1|x2|cx|x)="(-?[0-9.]+)"', svg)]


# Plots


@given(before=VALUES, after=VALUES)
def test_any_two_sides_make_a_picture_that_stays_in_its_frame(
    before: list[float], after: list[float]
) -> None:
    svg = plots.distribution("Time & <more>", "ms", before, after)
    if not before and not after:
        assert svg == ""
        return
    picture = ElementTree.fromstring(svg)
    assert picture.get("aria-label", "").startswith("Time & <more>: median")
    assert len(picture.findall(".//polygon")) == bool(before) + bool(after)
    assert all(-1 <= place <= plots.WIDTH + 1 for place in numbers(svg))


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6))
def test_ticks_are_round_few_and_within(low: float, span: float) -> None:
    found = plots.ticks(low, low + span)
    assert 1 <= len(found) <= 9
    slack = span * 1e-6 + abs(low) * 1e-9
    assert all(low - slack <= tick <= low + span + slack for tick in found)


def test_a_density_peaks_where_the_values_are() -> None:
    heights = plots.density([10.0, 10.1, 9.9, 30.0], 0.0, 40.0, 401)
    assert max(heights) == 1.0 and abs(heights.index(1.0) - 100) <= 2
    assert heights[300] == pytest.approx(1 / 3, rel=0.2) and heights[200] < 0.01
    assert plots.density([5.0], 0.0, 10.0, 11)[5] == 1.0


def test_the_slowest_are_counted_not_drawn_over_the_rest() -> None:
    svg = plots.distribution("Time", "ms", [10.0] * 99 + [500.0], [10.5] * 100)
    assert "+1 slower" in svg


def test_numbers_are_shown_with_three_digits() -> None:
    assert [three_digits(value) for value in (0, 0.01234, 1.5, 42.04, 1234.5, math.inf)] == [
        "0", "0.0123", "1.5", "42", "1234", "inf",
    ]  # fmt: skip
    assert [duration(value) for value in (0.42, 42, 190, 7500)] == [
        "0.4 s",
        "42 s",
        "3 min 10 s",
        "2 h 5 min",
    ]


def test_intervals_show_every_row_with_its_limit() -> None:
    rows = [
        plots.Interval("tokens/s c1", 0.7, 0.68, 0.72, 0.95, "fail"),
        plots.Interval("e2e <c8>", 1.0, 0.9, 9.0, 1.05, "inconclusive"),
    ]
    picture = ElementTree.fromstring(plots.intervals(rows))
    assert [group.get("class") for group in picture.findall("g")] == ["v-fail", "v-inconclusive"]
    assert len(picture.findall("path")) == 2
    assert plots.intervals([]) == "" == plots.timeline([])


# Evidence


def test_steps_take_the_time_that_the_journal_says() -> None:
    entries = [
        {"at": "2026-11-21T02:00:00.000+00:00", "tx": "t", "step": "begin", "state": "done"},
        {"at": "2026-11-21T02:00:01.000+00:00", "tx": "t", "step": "activate", "state": "intended"},
        {"at": "2026-11-21T02:00:03.000+00:00", "tx": "t", "step": "activate", "state": "done"},
        {"at": "2026-11-21T02:00:03.000+00:00", "tx": "t", "step": "ready", "state": "intended"},
        {"at": "2026-11-21T02:00:43.000+00:00", "tx": "t", "step": "ready", "state": "done"},
        {"at": "2026-11-21T02:00:43.500+00:00", "tx": "t", "step": "judge", "state": "intended"},
        {"at": "2026-11-21T02:00:44.000+00:00", "tx": "t", "step": "restore", "state": "intended"},
        {"at": "2026-11-21T02:01:14.000+00:00", "tx": "t", "step": "restore", "state": "done"},
    ]
    found = evidence.spans(Transaction(entries))
    assert [(span.label, span.began_s, span.took_s, span.state) for span in found] == [
        ("switch and restart", 1.0, 2.0, "done"),
        ("wait for tokens", 3.0, 40.0, "done"),
        ("verdict", 43.5, 30.5, "cut"),
        ("bring the old release back", 44.0, 30.0, "done"),
    ]
    assert without_service_s(Transaction(entries).turns) == 42.0 + 30.0
    assert without_service_s(Transaction(entries[:5]).turns) == 42.0
    assert without_service_s(Transaction(entries[:1]).turns) is None


def test_samples_are_the_measured_values(teller: Teller) -> None:
    teller.host.stage(NEW)
    teller.host.rates[NEW] = 50.0
    teller.host.switch()
    (item,) = shown_switches([teller.answer()])
    first = {sample.title: sample for sample in item.samples}["Time to first token, 1 stream"]
    assert set(first.before) == {50.0} and set(first.after) == {100.0} and first.change == pytest.approx(1.0)
    rate = {sample.title: sample for sample in item.samples}["Throughput, 8 streams"]
    assert rate.before == (100.0,) and rate.after == (50.0,)
    assert item.switch.outcome == "rolled_back" and not item.good
    assert {row.verdict for row in item.intervals} >= {"fail"}


def test_flips_are_paired_by_prompt() -> None:
    before = Record("m", {}, (), quality=tuple(Graded(name, passed=name != "c") for name in "abcd"))
    after = Record("m", {}, (), quality=tuple(Graded(name, passed=name != "b") for name in "abc"))
    lost, gained, paired = evidence.flips(before, after)
    assert ([item.prompt for item in lost], [item.prompt for item in gained], paired) == (["b"], ["c"], 3)
    assert evidence.flips(None, after) == ((), (), 0)


def test_damaged_evidence_is_said_and_the_rest_is_shown(teller: Teller) -> None:
    teller.host.stage(NEW)
    teller.host.switch()
    look = teller.look()
    files = look.record["chat"]["transactions"][0]["evidence"]
    files["before"]["phases"] = []
    (item,) = shown_switches([Answer("gpu1", look)])
    assert item.missing == ("before.phases is empty: nothing was measured",)
    assert all(not sample.before and sample.after for sample in item.samples)
    assert "Evidence left out: before.phases" in render("x", [Answer("gpu1", look)], nights.MORNING)


# The page


class Page(HTMLParser):
    """Every tag is closed in order; collects what could load something."""

    EMPTY = frozenset({"meta", "link", "br", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.counts: dict[str, int] = {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in self.EMPTY:
            self.open.append(tag)
        self.loads += [
            f"{tag} {key}={value}" for key, value in attrs if key in ("src", "href", "srcset", "action")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """`<line/>` of the plots opens and closes itself."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.thorough
def test_three_nights_make_a_page_that_loads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = nights.fleet(tmp_path, monkeypatch)
    text = render("inventory/prod.py", answers, nights.MORNING)
    page = Page(text)
    assert [load for load in page.loads if not load.startswith("a href=#")] == ["link href=data:,"]
    assert "http://" not in re.sub(r"http://127\.0\.0\.1\S*", "", text) and "url(" not in text
    outcomes = [item.switch.outcome for item in shown_switches(answers)]
    assert outcomes == ["rolled_back", "committed", "committed", "rolled_back"]
    assert page.counts["figure"] == 4 * 7
    assert "could not be asked: not reached" in text and ", 15 lost, 1 gained" in text
    assert len(text) < 600_000


def test_what_hosts_say_is_text_and_never_markup(teller: Teller) -> None:
    evil = "<script>alert(1)</script>"
    teller.host.stage(NEW)
    teller.host.switch(operator=evil, reason=f'"{evil}')
    answers: list[Answer[Look]] = [Answer(evil, teller.look()), Answer("b", problem=evil)]
    text = render(evil, answers, nights.MORNING, declaration=evil)
    assert "<script" not in text
    Page(text)


def spoilt(value: Any, key: str = "") -> Any:
    """The same answer with markup behind every text that a host is free to choose."""
    if isinstance(value, dict):
        free = key in ("environment", "left_out", "rejected")  # whose names are a host's, too
        return {spoilt(name) if free else name: spoilt(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [spoilt(item, key) for item in value]
    fixed = ("at", "step", "state", "tx", "unit", "purpose", "current", "running", "began", "ended")
    is_time = key.endswith((" intended", " done"))  # of a switch's `turns`
    return f"{value}{EVIL}" if isinstance(value, str) and key not in fixed and not is_time else value


def document(service: Observed) -> dict[str, Any]:
    """The JSON that it was read from."""
    told: dict[str, Any] = json.loads(json.dumps(asdict(service)))
    told["history"] = [{**each, "from": each["old"], "to": each["new"]} for each in told["history"]]
    return told


def test_no_text_of_a_host_becomes_markup_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = nights.fleet(tmp_path, monkeypatch)
    assert first.value is not None
    look = Look(
        observed(spoilt([document(service) for service in first.value.running])),
        {EVIL: spoilt(first.value.record["chat"])},
        gpus=(nights.gpu(unit=f"vllm-chat{EVIL}.service"),),
    )
    text = render("x", [Answer(f"a{EVIL}", look), *others], nights.MORNING)
    assert "<script" not in text and "<img" not in text
    Page(text)
    assert text.count("&lt;script&gt;") > 100 and "Qwen/Qwen3-32B-AWQ&#34;&#39;&gt;&lt;script" in text


def test_times_are_the_readers_with_their_zone() -> None:
    zurich = ZoneInfo("Europe/Zurich")
    assert local("2026-11-21T02:13:07.123+00:00", zurich) == "2026-11-21 03:13 CET"
    assert local("2026-07-21T02:13:07+00:00", zurich) == "2026-07-21 04:13 CEST"
    assert local("Sat 2026-11-21 07:54:30 UTC", zurich) == "Sat 2026-11-21 07:54:30 UTC"
    assert local("", zurich) == ""
    assert local("0001-01-01T00:00:00+14:00", ZoneInfo("America/New_York")) == "0001-01-01T00:00:00+14:00"


def test_a_fleet_without_a_switch_has_a_page_too(teller: Teller) -> None:
    text = render("x", [teller.answer()], nights.MORNING)
    assert "No host recorded a switch." in text and OLD in text


@pytest.mark.thorough
def test_the_command_writes_one_file(teller: Teller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    teller.host.stage(NEW)
    teller.host.switch()
    inventory = tmp_path / "fleet.py"
    inventory.write_text(f"here = [('@local', {{'root': {str(tmp_path)!r}}})]\n")
    done = CliRunner().invoke(report, [str(inventory), "--out", "out", "--json"], standalone_mode=False)
    assert done.return_value == 0, done.output
    assert json.loads(done.stdout) == {
        "report": "out/index.html",
        "bytes": (tmp_path / "out/index.html").stat().st_size,
        "missing": {},
    }
    assert NEW in (tmp_path / "out/index.html").read_text()


def test_a_time_that_is_none_is_told_before_anything_is_written(tmp_path: Path) -> None:
    asked = ["prod.py", "--out", str(tmp_path / "out"), "--since", "tuesday"]
    done = CliRunner().invoke(report, asked, standalone_mode=False)
    assert isinstance(done.exception, DeclarationError) and "--since 'tuesday'" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_gpu_memory_is_that_of_the_cards_that_the_service_runs_on(teller: Teller) -> None:
    mine, other = nights.gpu(), nights.gpu(9000, "vllm-coder.service")
    assert memory_of("chat", [mine, other]) == "61.2 of 79.6 GiB"
    assert memory_of("chat", [mine, mine]) == "122.4 of 159.3 GiB, 2 GPUs"
    assert (
        memory_of("chat", [replace(mine, split=True), replace(mine, memory_mib=40192)]) == "61.2 of 39.2 GiB"
    )
    assert memory_of("chat", [nights.gpu(None)]) == memory_of("chat", [other]) == memory_of("chat", []) == ""
    look = replace(teller.look(), gpus=(mine,))
    assert "61.2 of 79.6 GiB" in render("x", [Answer("gpu1", look)], nights.MORNING)
    assert "GPU memory</th>" not in render("x", [teller.answer()], nights.MORNING)


@pytest.mark.parametrize("out", ["/proc/nope", "full/out"])
def test_a_folder_that_cannot_be_written_is_told_before_any_host_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").write_text("a file")
    (tmp_path / "prod.py").write_text("here = ['@local']\n")
    monkeypatch.setattr("pyinfra_vllm.commands.report.Hosts.ask", None)
    done = CliRunner().invoke(report, ["prod.py", "--out", out], standalone_mode=False)
    assert isinstance(done.exception, DeclarationError) and done.exception.exit_code == 2
    assert f"--out '{out}' can't be written to: " in str(done.exception)


@pytest.mark.thorough
def test_a_page_that_cannot_be_written_is_one_line(
    teller: Teller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inventory = tmp_path / "taken.py"
    inventory.write_text(f"here = [('@local', {{'root': {str(tmp_path)!r}}})]\n")
    (tmp_path / "out/index.html").mkdir(parents=True)
    done = CliRunner().invoke(report, [str(inventory), "--out", "out"], standalone_mode=False)
    assert isinstance(done.exception, DeclarationError)
    assert "--out 'out' can't be written to: Is a directory" in str(done.exception)
