"""A child that is left while it speaks: its readers end quietly."""

from __future__ import annotations

import sys
import threading
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
