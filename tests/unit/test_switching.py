"""Following a switch from the control machine: what a lost connection does to what the operator is told."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from paramiko import SSHException
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import ConnectError

from pyinfra_vllm.on_host.order import Order
from pyinfra_vllm.operations import _switching, _unit
from pyinfra_vllm.operations._switching import Switching

ORDER = Order(service="chat", release="a" * 12, operator="ann")
ENDED = {
    "tx": "t",
    "entries": [],
    "progress": [],
    "active": False,
    "end": {"outcome": "committed", "reason": "no worse"},
}


@dataclass
class FarHost:
    """Answers the host program's verbs; what is an exception is raised. It can be reached again at the third attempt."""

    answers: dict[str, list[Any]]
    connected: bool = True
    attempts: int = 0
    name: str = "gpu1"
    print_prefix: str = ""
    current_op_global_arguments: dict[str, Any] = field(default_factory=lambda: {"_sudo": True})

    def run_shell_command(self, command: StringCommand, **options: Any) -> tuple[bool, SimpleNamespace]:
        assert self.connected, "a client that did not connect has no transport to send anything through"
        words = command.get_raw_value().split()
        verb = next((word for word in words if word in self.answers), None)
        if verb is None:
            return True, SimpleNamespace(stdout="", stderr="")
        given = self.answers[verb]
        answer = given.pop(0) if len(given) > 1 else given[0]
        if isinstance(answer, Exception):
            raise answer
        return True, SimpleNamespace(stdout=json.dumps(answer), stderr="")

    def disconnect(self) -> None:
        self.attempts += 1
        self.connected = False

    def connect(self, **options: Any) -> None:
        if self.attempts < 3:
            raise ConnectError("no route to host")
        self.connected = True


def switched(monkeypatch: pytest.MonkeyPatch, **answers: list[Any]) -> tuple[FarHost, Any]:
    monkeypatch.setattr(_unit, "POLL_S", 0.0)
    monkeypatch.setattr(_switching, "POLL_S", 0.0)
    host = FarHost({"status": [[{"lock": None, "rejected": {}, "last": None}]], "reported": [{}], **answers})
    fake: Any = host
    return host, Switching(fake, "/srv/x", ORDER).run()


def test_a_cable_that_is_out_for_long_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = [TimeoutError("no answer in 30 s"), SSHException("SSH session not active"), ENDED]
    host, outcome = switched(monkeypatch, follow=lost)
    assert (outcome.status, outcome.message) == ("committed", "no worse")
    assert host.attempts == 4


def test_an_outcome_that_was_seen_is_not_lost_with_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    _, outcome = switched(monkeypatch, follow=[ENDED], reported=[EOFError()])
    assert outcome.status == "committed"


def test_a_connection_lost_before_the_switch_was_followed_says_that_the_host_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, outcome = switched(monkeypatch, status=[SSHException("SSH session not active")])
    assert outcome.status == "unknown"
    assert (
        "SSH session not active" in outcome.message
        and "Nothing was touched unless the switch had begun" in outcome.message
    )
