"""Answers of hosts, recorded from the real journal of a simulated host: for tests of status, history and
report.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from simulated import OLD, SimulatedHost

from pyinfra_vllm.answers import observed
from pyinfra_vllm.asking import Answer
from pyinfra_vllm.on_host.state import observe, recall, running
from pyinfra_vllm.report.looking import Look, Wish


class Teller:
    """A simulated host that can be asked, as a fact asks a real one."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = SimulatedHost(root, monkeypatch)
        self.host.install(OLD)
        monkeypatch.setattr(observe, "unit_state", lambda unit: {"ActiveState": "active", "MainPID": "1"})
        monkeypatch.setattr(running, "release", lambda unit, shown: self.host.running)

    def look(self, wishes: tuple[Wish, ...] | None = None, max_bytes: int = 10**7, newest: int = 50) -> Look:
        root = self.host.paths.root
        told = recall.recall(root, newest, max_bytes, [])
        running = observed(observe.observe(root, []))
        return Look(running, {service["service"]: service for service in told}, wishes)

    def answer(self, name: str = "gpu1", **how: Any) -> Answer[Look]:
        return Answer(name, self.look(**how))


@pytest.fixture
def teller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Teller]:
    yield Teller(tmp_path, monkeypatch)
