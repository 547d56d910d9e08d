"""A child that is left while it speaks, or neither speaks nor listens: whoever started it never waits."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from pyinfra_vllm.on_host.staging import child

CHATTERBOX = b"import os\nwhile True: os.write(1, b'{}\\n' * 20000)"


@pytest.fixture
def chatterbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pkgutil.get_data", lambda _package, _module: CHATTERBOX)


@pytest.mark.thorough
def test_a_child_left_in_the_middle_of_its_lines_leaves_no_failed_thread(
    chatterbox: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    monkeypatch.setattr(child, "MOST_LINES", 1 << 30)
    for _ in range(30):
        with child.told(sys.executable, "chatterbox", "the chatterbox", {}) as events:
            assert next(events) == {}
    assert not failed


def answers_with(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pkgutil.get_data", lambda _package, _module: code.encode())


@pytest.mark.parametrize("heir", ["", "import os; os.fork(); "])
def test_child_that_does_not_read_its_order_is_ended(heir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a process that it started has the other end of the pipe, and lives on."""
    answers_with(f"{heir}import time; time.sleep(20)", monkeypatch)
    monkeypatch.setattr(child, "ORDER_S", 1.0)
    began = time.monotonic()
    with child.told(sys.executable, "deaf", "the deaf one", {"long": "x" * 200_000}) as events:
        (event,) = events
    assert event is not None and "the deaf one did not read its order" in event["error"]
    assert time.monotonic() - began < 10


def test_long_order_is_read_whole_by_a_child_that_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    answers_with("import sys, time; time.sleep(1); print(len(sys.stdin.readline()))", monkeypatch)
    with child.told(sys.executable, "slow", "the slow one", {"long": "x" * 500_000}) as events:
        said = [event for event in events if event is not None]
    assert said == [{"path": "", "error": "500013"}]


def ticks(events: Iterator[Any]) -> int:
    return sum(event is None for event in islice(events, 1000))


@pytest.mark.parametrize(
    "code",
    [
        "import os, time\nos.close(1); time.sleep(20)",
        "import sys, time\nwhile True: print('{}', flush=True); time.sleep(0.001)",
    ],
    ids=["closed output", "flood"],
)
def test_time_passes_for_whoever_listens_whatever_a_child_does(
    code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers_with(code, monkeypatch)
    monkeypatch.setattr(child, "POLL_S", 0.01)
    began = time.monotonic()
    with child.told(sys.executable, "odd", "the odd one", {}) as events:
        assert ticks(events) >= 3
    assert time.monotonic() - began < 19
