"""Following a unit on a host: what the operator sees, and what a dropped connection does (nothing to the
work).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from paramiko import SSHException
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import ConnectError

from pyinfra_vllm.errors import HostError
from pyinfra_vllm.operations.util import unit
from pyinfra_vllm.operations.util.unit import Unit, describe
from pyinfra_vllm.text import in_time, in_units

Look = tuple[dict[str, Any], str] | Exception
RUNNING = ({"state": "downloading", "bytes": 5, "total_bytes": 10}, "active")
DONE = ({"state": "done"}, "inactive")


@dataclass
class FakeHost:
    """Answers looks from a script, the last one for ever, and keeps every other command."""

    looks: list[Look]
    commands: list[str] = field(default_factory=list)
    stdin: list[str] = field(default_factory=list)
    reconnected: int = 0
    connected: bool = True
    print_prefix: str = ""
    name: str = "gpu1"
    current_op_global_arguments: dict[str, Any] = field(default_factory=lambda: {"_sudo": True})
    fail: Callable[[str], bool] = lambda command: False
    request: dict[str, Any] = field(default_factory=lambda: {"root": "/r"})  # of the unit that runs

    def run_shell_command(self, command: StringCommand, **options: Any) -> tuple[bool, SimpleNamespace]:
        assert self.connected, "a client that did not connect has no transport to send anything through"
        text = command.get_raw_value()
        assert options["_sudo"] is True
        if "|| true" in text:
            return True, SimpleNamespace(stdout=json.dumps(self.request) + "\n", stderr="")
        if "systemctl show" not in text:
            self.commands.append(text)
            _, _, content = (options.get("_stdin") or "").partition("\n")
            self.stdin.append(base64.b64decode(content).decode())
            return not self.fail(text), SimpleNamespace(stdout="", stderr="refused by systemd")
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, Exception):
            raise look
        status, state = look
        return True, SimpleNamespace(stdout=f"{json.dumps(status) if status else ''}\n{state}", stderr="")

    def disconnect(self) -> None:
        self.reconnected += 1
        self.connected = False

    def connect(self, **options: Any) -> None:
        if self.reconnected < 3:
            raise ConnectError("still away")
        self.connected = True


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit, "POLL_S", 0.0)


def run(host: Any, **secret: str) -> None:
    Unit(host, "fetch-x", "download x").run("/r", "fetch", {"root": "/r"}, **secret)


def test_the_secret_is_a_credential_and_is_removed(caplog: pytest.LogCaptureFixture) -> None:
    host = FakeHost([({}, "inactive"), RUNNING, DONE])
    run(host, hub_token="hf_canary")
    assert not any("hf_canary" in command for command in host.commands)
    assert host.stdin.count("hf_canary") == 1
    (started,) = [command for command in host.commands if command.startswith("systemd-run")]
    assert "LoadCredential=hub-token:/run/pyinfra-vllm/fetch-x.secret" in started
    assert "ReadWritePaths=/r /run/pyinfra-vllm" in started and "/r/bin/on-host.pyz fetch" in started
    assert "--collect" in started
    assert host.commands[-1] == "rm -f -- /run/pyinfra-vllm/fetch-x.secret"


def test_the_secret_is_removed_also_when_the_start_fails() -> None:
    host = FakeHost([({}, "inactive")], fail=lambda command: command.startswith("systemd-run"))
    with pytest.raises(HostError, match="refused by systemd"):
        run(host, hub_token="hf_canary")
    assert host.commands[-1] == "rm -f -- /run/pyinfra-vllm/fetch-x.secret"


def test_a_unit_under_way_is_followed_and_not_started_again() -> None:
    host = FakeHost([RUNNING, RUNNING, DONE])
    run(host, hub_token="hf_canary")
    assert host.commands == []


def test_other_work_of_the_same_name_is_waited_for_and_then_ours_begins() -> None:
    """A part for a swarm and a whole download share a name: the part's end is not the checkpoint's."""
    part = ({"state": "done", "message": "its part is ready"}, "inactive")
    host = FakeHost([RUNNING, RUNNING, part, part, RUNNING, DONE], request={"root": "/r", "part": {}})
    run(host)
    assert sum(command.startswith("systemd-run") for command in host.commands) == 1
    assert json.loads(host.stdin[2]) == {"root": "/r"}


def test_other_work_that_failed_does_not_fail_ours() -> None:
    failed = ({"state": "failed", "error": "no space"}, "failed")
    host = FakeHost([RUNNING, failed, failed, DONE], request={"root": "/r", "verify": True})
    run(host)
    assert sum(command.startswith("systemd-run") for command in host.commands) == 1


def test_what_is_only_begun_waits_for_nothing() -> None:
    host = FakeHost([RUNNING], request={"root": "/r", "part": {}})
    with pytest.raises(unit.OtherWork, match="does other work now"):
        Unit(host, "fetch-x", "share x").begin("/r", "fetch", {"root": "/r"})  # type: ignore[arg-type]
    assert host.commands == []


def test_a_dropped_connection_is_made_again_and_the_work_followed() -> None:
    host = FakeHost([({}, "inactive"), RUNNING, EOFError("gone"), SSHException("not active"), RUNNING, DONE])
    run(host)
    assert host.reconnected == 4


def test_lost_contact_tells_the_operator_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit, "LOST_CONTACT_S", -1.0)
    with pytest.raises(HostError, match=r"fetch-x\.service goes on by itself; run the same command again"):
        run(FakeHost([({}, "inactive"), EOFError("gone")]))


def test_the_programs_own_words_are_the_error() -> None:
    with pytest.raises(HostError, match="model-1 has other content"):
        run(
            FakeHost(
                [({}, "inactive"), ({"state": "failed", "error": "model-1 has other content"}, "failed")]
            )
        )


def test_a_unit_that_was_killed_names_its_log() -> None:
    with pytest.raises(HostError, match=r"journalctl --unit pyinfra-vllm-fetch-x\.service"):
        run(FakeHost([({}, "inactive"), RUNNING, (RUNNING[0], "inactive")]))


def test_progress_reads_well() -> None:
    status = {"state": "downloading", "bytes": 12.3e9, "total_bytes": 19e9, "rate": 210e6, "eta_s": 32}
    assert describe(status) == "downloading, 12.3 GB of 19.0 GB (65 %), 210.0 MB/s, 32 s left"
    assert (
        describe({"state": "installing", "message": "vllm: Resolved 120 packages"})
        == "vllm: Resolved 120 packages"
    )
    assert describe({}) == "starting"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (19.34e9, "19.3 GB"), (2e12, "2.0 TB")]
)
def test_bytes(count: float, text: str) -> None:
    assert in_units(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(45, "45 s"), (720, "12 min"), (3900, "65 min"), (7500, "2 h 05 min")]
)
def test_time(seconds: float, text: str) -> None:
    assert in_time(seconds) == text
