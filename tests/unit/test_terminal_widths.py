"""Status, history and doctor at 80, 100 and 200 columns, as golden files: nothing cropped, the worst first.

`PYINFRA_VLLM_GOLDEN=write pytest tests/unit/test_terminal_widths.py` writes them anew, for a person to read.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from pyinfra_vllm.on_host.doctor import Check
from pyinfra_vllm.report import checkup
from pyinfra_vllm.report.checkup import Examined
from pyinfra_vllm.report.history import Switch
from pyinfra_vllm.report.status import Row
from pyinfra_vllm.report.tables import reasons_of, show_history, show_status, why_of

GOLDEN = Path(__file__).parents[1] / "fixtures" / "screens"
WIDTHS = (80, 100, 200)
A, B = "4c0ffee4c0de", "0ddba11c0de5"
MODEL = "Qwen/Qwen3-14B-AWQ"


def row(host: str, state: str = "ok", **what: object) -> Row:
    known = {
        "service": "chat",
        "release": A,
        "since": "2026-11-20T02:13:07+00:00",
        "model": MODEL,
        "runtime": "0.33.0",
        "flags": "1f2e3d4c",
        "kernel": "MarlinLinearKernel",
        "verdict": "committed (pass)",
        "current": A,
        "running": A,
    }
    return Row(host, state=state, **{**known, **what})  # type: ignore[arg-type]


FEW = [
    row("gpu-01"),
    row(
        "gpu-02",
        "drift",
        drift=(f"declared {B} was rejected: c1 tokens_per_s: worse: 100 before, 50 after (and 2 more)",),
    ),
    row(
        "gpu-03.rack-17.frankfurt.example.net",
        "drift",
        running=None,
        release=B,
        drift=("not running (failed)",),
    ),
    Row(
        "gpu-04",
        state="down",
        problem="not reached: could not connect: [Errno 110] Connection timed out after 10 s",
    ),
    row(
        "gpu-05",
        "switching",
        switching=f"the rollout of release {B} by alice@laptop since 2026-11-21T02:00:05+00:00",
    ),
    row(
        "gpu-06",
        "unproven",
        drift=(
            f"the switch to {B} could not be taken back: vLLM can't start: EngineCore: "
            "OutOfMemoryError: CUDA out of memory",
        ),
        verdict="restore_failed",
    ),
    row("東京-01", service="検索"),
]
FORTY = [
    *(row(f"box-{number:02d}", since=f"2026-11-20T02:{number:02d}:00+00:00") for number in range(1, 39)),
    FEW[1],
    FEW[3],
]


def switch(host: str, outcome: str, at: str, **what: object) -> Switch:
    known = {
        "service": "chat",
        "tx": f"{at}-{A}",
        "operator": "schedule@control",
        "purpose": "rollout",
        "old": B,
        "new": A,
        "verdict": "pass",
        "reason": "passed",
        "ended": at,
        "took_s": 412.4,
    }
    return Switch(began=at, host=host, outcome=outcome, **{**known, **what})  # type: ignore[arg-type]


PAST = [
    switch("gpu-01", "committed", "2026-11-20T02:00:05+00:00", old=None),
    switch(
        "gpu-02",
        "rolled_back",
        "2026-11-20T02:07:11+00:00",
        verdict="fail",
        reason="c1 tokens_per_s: worse: 100 before, 50 after, ratio 0.500 [0.487, 0.512], the limit is 0.950",
    ),
    switch(
        "gpu-03.rack-17.frankfurt.example.net",
        "restore_failed",
        "2026-11-20T02:20:00+00:00",
        verdict="",
        operator="alice@laptop",
        reason="vLLM can't start: Worker: SafetensorError: incomplete metadata",
        why="ticket 4711",
        overrides=("switch_now", "retry_rejected"),
    ),
    switch("gpu-05", "under way", "2026-11-21T02:00:05+00:00", verdict="", reason="", ended="", took_s=None),
]
CHECKS = tuple(Check(name, True, "") for name in ("clock", "program", "recovery", "disk"))
EXAMINED = [
    Examined("gpu-01", CHECKS),
    Examined(
        "gpu-02",
        (
            *CHECKS,
            Check(
                "driver",
                False,
                (
                    "the kernel has the NVIDIA module 570.10.01, the libraries are 580.159.04:"
                    " a server that is started now gets no GPU. Boot the host"
                ),
            ),
            Check("chat: rollback files", False, f"release {B} has lost its file argv"),
        ),
    ),
    Examined("gpu-04", problem="not reached: timed out"),
]

SCREENS: dict[str, tuple[Callable[[Console], None], list[str]]] = {
    "status": (
        lambda screen: show_status(screen, FEW),
        [text for each in FEW for text in (each.host, *reasons_of(each))],
    ),
    "status-40-hosts": (lambda screen: show_status(screen, FORTY), [each.host for each in FORTY]),
    "history": (
        lambda screen: show_history(screen, PAST),
        [text for each in PAST for text in (each.host, why_of(each), each.operator, each.new, each.purpose)],
    ),
    "doctor": (
        lambda screen: checkup.show(screen, EXAMINED),
        [text for each in EXAMINED for text in (each.host, *(check.detail for check in each.wrong))],
    ),
}


def shown(show: Callable[[Console], None], width: int, height: int = 24) -> str:
    paper = io.StringIO()
    show(
        Console(
            file=paper,
            force_terminal=True,
            color_system=None,
            width=width,
            height=height,
            legacy_windows=False,
        )
    )
    return "".join(f"{line.rstrip()}\n" for line in paper.getvalue().splitlines())


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_is_as_it_was_and_has_everything(name: str, width: int) -> None:
    show, must_be_there = SCREENS[name]
    found = shown(show, width)
    golden = GOLDEN / f"{name}-{width}.txt"
    if os.environ.get("PYINFRA_VLLM_GOLDEN") == "write":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(found, encoding="utf-8")
    assert found == golden.read_text(encoding="utf-8")
    for text in must_be_there:
        assert squeezed(text) in squeezed(found), text
    assert "…" not in found


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(width: int) -> None:
    found = shown(lambda screen: show_status(screen, FEW), width)
    past = shown(lambda screen: show_history(screen, PAST), width)
    assert max(cell_len(line) for line in (found + past).splitlines()) <= width


def test_a_fleet_of_forty_fits_one_screen_with_its_worst_on_top() -> None:
    lines = shown(SCREENS["status-40-hosts"][0], 80).splitlines()
    assert len(lines) < 24
    assert lines[1].startswith("down ") and "40 hosts: 1 down, 1 drift, 38 ok" in lines[-1]
    tall = shown(SCREENS["status-40-hosts"][0], 80, height=60).splitlines()
    assert len([line for line in tall if line.startswith("ok ")]) == 38, "with room, each has its line"


def test_wide_has_every_column_and_every_host() -> None:
    found = shown(lambda screen: show_status(screen, FORTY, wide=True), 80)
    rows = [line for line in found.splitlines() if line.startswith("ok ")]
    assert len(rows) == 38 and all(MODEL in line and "MarlinLinearKernel" in line for line in rows)


def test_what_is_left_out_of_a_narrow_status_is_named() -> None:
    last = shown(SCREENS["status-40-hosts"][0], 80).splitlines()[-1]
    assert last.endswith("(--wide shows also: vllm, model, flags, kernel)")


def test_a_pipe_gets_one_line_for_each_with_the_reason_at_its_end() -> None:
    paper = io.StringIO()
    show_status(Console(file=paper, width=2000, no_color=True), FORTY)
    lines = paper.getvalue().splitlines()
    assert len(lines) == 41 and lines[1].endswith("Connection timed out after 10 s") and MODEL in lines[-1]


@pytest.mark.parametrize("text", ["\x1b[2J", "\x1b]0;owned\x07", "\u202egnp", "a\nb", "[bold]x[/bold]"])
def test_nothing_that_a_host_says_steers_the_screen(text: str) -> None:
    examined = [Examined(text, (Check(text, False, text),)), Examined("b", problem=text)]
    past = [switch(text, text, "2026-11-20T02:00:05+00:00", reason=text, operator=text, purpose=text)]
    for found in (
        shown(lambda screen: checkup.show(screen, examined), 80),
        shown(lambda screen: show_history(screen, past), 80),
        shown(lambda screen: show_status(screen, [row(text, "drift", drift=(text,), release=text)]), 80),
    ):
        assert all(line.isprintable() for line in found.splitlines())
        assert "[bold]x[/bold]" in found or "[bold]" not in text
