"""The promise with standby, on a simulated host: whatever fails and whenever, one proven release serves, and
no server ever gets the card's memory while another has it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from standby_host import BACK, NEW, OLD, TO_NEW, StandbyHost, count_calls, die_at_every, ends_right, prepared

from pyinfra_vllm.on_host.bench import probe
from pyinfra_vllm.on_host.server import control, sockets, systemd
from pyinfra_vllm.on_host.state import durable
from pyinfra_vllm.on_host.switch import standby


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandbyHost]:
    yield (made := prepared(tmp_path, monkeypatch))
    assert made.violations == []


def test_a_release_that_is_no_worse_is_kept_and_the_old_one_stopped(host: StandbyHost) -> None:
    assert host.switch() == "committed"
    assert host.acts() == [*TO_NEW, "stop old"] and host.starts == [NEW]
    ends_right(host, NEW)
    steps = [entry["step"] for entry in host.journal() if entry["state"] == "done"]
    assert steps == [
        "begin", "prove-way-back", "prove-way-forward", "measure-before", "canary", "window",
        "reserve-rollback", "canary", "activate", "ready", "kernel", "measure-after", "judge", "point",
        "commit", "end",
    ]  # fmt: skip


def test_a_worse_release_is_left_without_a_start_of_the_old_one(host: StandbyHost) -> None:
    host.rates[NEW] = 50.0
    assert host.switch() == "rolled_back"
    assert host.acts() == [*TO_NEW, *BACK] and host.starts == [NEW]
    ends_right(host, OLD)
    assert "tokens" in durable.read_json(host.paths.rejected)[NEW]["reason"]


TAKEN_OVER = {
    "infinite": b'{"ok":true,"state":"serving","in_flight":Infinity,"held":0,"relay":"","pass":"x"}',
    "down": b'{"ok":true,"state":"down","in_flight":0,"held":0,"relay":"","pass":"x"}',
    "deep": b"[" * 60_000,
    "refuses": b'{"ok": false, "error": "no"}',
}


@pytest.mark.parametrize("answer", TAKEN_OVER)
def test_a_server_that_was_taken_over_has_no_say_in_its_rollback(
    monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    real = (control.Control.state, control.Control.tell)
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        host = prepared(Path(folder), monkeypatch, rate=50.0)
        simulated = (control.Control.state, control.Control.tell)
        begun = threading.Event()

        def whose(this: control.Control, number: int) -> Any:
            return (real if begun.is_set() and NEW in this.unit else simulated)[number]

        def measured(*asked: Any, **how: Any) -> Any:
            if host.running == NEW and not begun.is_set():
                path = host.paths.sockets_folder(NEW) / "control.sock"
                path.parent.mkdir(parents=True)
                listener.bind(str(path))
                listener.listen()
                threading.Thread(target=_answers, args=(listener, TAKEN_OVER[answer]), daemon=True).start()
                begun.set()
            return measure(*asked, **how)

        measure = probe.measure
        monkeypatch.setattr(probe, "measure", measured)
        monkeypatch.setattr(control.Control, "state", lambda this: whose(this, 0)(this))
        monkeypatch.setattr(control.Control, "tell", lambda this, *a, **k: whose(this, 1)(this, *a, **k))
        monkeypatch.setattr(sockets, "unit_behind", lambda connected: host.paths.server_unit(NEW))
        assert host.switch() == "rolled_back" and begun.is_set()
        ends_right(host, OLD)


def _answers(listener: socket.socket, answer: bytes) -> None:
    with contextlib.suppress(OSError):
        while True:
            connected, _ = listener.accept()
            with connected:
                connected.recv(4096)
                connected.sendall(answer + b"\n")


def test_a_release_that_never_serves_is_rejected_and_the_old_one_woken(host: StandbyHost) -> None:
    host.broken.add(NEW)
    assert host.switch() == "rolled_back"
    assert set(host.starts) == {NEW}
    ends_right(host, OLD)
    assert NEW in durable.read_json(host.paths.rejected)


# What fails, of whom; whether the old release has to be started, and whether the new one stays.
FAULTS = [
    (OLD, "sleep", [NEW], NEW),
    (OLD, "busy", [], OLD),
    (OLD, "memory", [NEW], NEW),
    (OLD, "wake", [NEW, OLD], OLD),
    (NEW, "sleep", [NEW], OLD),
    (NEW, "busy", [NEW], OLD),
    (NEW, "memory", [NEW], OLD),
]


@pytest.mark.parametrize(("who", "fault", "starts", "stays"), FAULTS)
def test_whatever_fails_one_proven_release_serves(
    host: StandbyHost, who: str, fault: str, starts: list[str], stays: str
) -> None:
    host.faults.add((who, fault))
    if who == NEW or fault == "wake":
        host.rates[NEW] = 50.0
    assert host.switch() == ("committed" if stays == NEW else "rolled_back")
    ends_right(host, stays)
    assert [one for one in host.starts if one == OLD] == [one for one in starts if one == OLD]


def test_a_new_release_that_answers_otherwise_after_its_first_wake_goes_back(host: StandbyHost) -> None:
    host.wrong.add(NEW)
    assert host.switch() == "rolled_back"
    assert host.starts == [NEW] and "stop new" in host.acts()
    ends_right(host, OLD)


def test_an_old_release_that_answers_otherwise_after_its_wake_is_started_anew(host: StandbyHost) -> None:
    host.rates[NEW] = 50.0
    host.wrong.add(OLD)
    assert host.switch() == "rolled_back"
    assert host.starts == [NEW, OLD]
    ends_right(host, OLD)


@pytest.mark.thorough
def test_death_at_some_calls_leaves_one_proven_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_at_every(11, tmp_path, monkeypatch, 50.0, boot=False)


@pytest.mark.thorough
@pytest.mark.parametrize("boot", [False, True], ids=["killed", "power cut"])
@pytest.mark.parametrize("rate", [100.0, 50.0], ids=["no worse", "worse"])
def test_death_at_any_call_leaves_one_proven_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, boot: bool
) -> None:
    die_at_every(1, tmp_path, monkeypatch, rate, boot)


@pytest.mark.thorough
def test_a_disk_that_fills_at_any_write_keeps_no_unproven_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rate, takes_turns in ((100.0, False), (50.0, False), (100.0, True)):
        total = count_calls(tmp_path / f"dry-{rate}-{takes_turns}", monkeypatch, rate, takes_turns)
        for moment in range(0, total, 23 if takes_turns else 1):
            with monkeypatch.context() as patch:
                host = prepared(tmp_path / f"{rate}-{takes_turns}-{moment}", patch, rate)
                host.disk_full_at, host.takes_turns = moment, takes_turns
                with contextlib.suppress(OSError):
                    host.switch()
                assert host.running is not None, f"full at {moment}: nobody serves"
                host.disk_full_at = None
                host.recover()
                ends_right(host, NEW if host.outcome() == "committed" else OLD, f"full at {moment}")


GIB = 1 << 20  # in the units of /proc/meminfo
FIT = {"weights_bytes": 20 << 30}  # of one GPU
SPLIT = ("--tensor-parallel-size", "2", "--pipeline-parallel-size=2")


@pytest.mark.parametrize(
    ("version", "available", "fit", "flags", "because"),
    [
        (251, 500, FIT, (), "systemd is 251, 252 or newer is needed"),
        (
            257,
            130,
            FIT,
            (),
            "80 GiB of host memory may be needed for the weights of releases that sleep, and 30 GiB are free"
            " beyond the 10% that must stay free",
        ),
        (252, 181, FIT, (), ""),
        (
            252,
            419,
            FIT,
            SPLIT,
            "320 GiB of host memory may be needed for the weights of releases that sleep,"
            " and 319 GiB are free beyond the 10% that must stay free",
        ),
        (252, 421, FIT, SPLIT, ""),
        (252, 900, {}, (), f"nobody knows how much memory the weights of release {OLD} take"),
    ],
)
def test_a_host_that_can_t_have_it_says_why(
    host: StandbyHost,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    version: int,
    available: int,
    fit: dict[str, int],
    flags: tuple[str, ...],
    because: str,
) -> None:
    for name in (OLD, NEW):
        path = host.paths.release(name) / "release.json"
        told = json.loads(path.read_text())
        path.write_text(json.dumps({**told, "fit": fit, "argv": [*told["argv"], *flags]}))
    memory = tmp_path / "meminfo"
    memory.write_text(f"MemTotal: {1000 * GIB} kB\nMemAvailable: {available * GIB} kB\n")
    monkeypatch.setattr(standby, "MEMINFO", memory)
    monkeypatch.setattr(systemd, "version", lambda: version)
    assert host.switch() == "committed"
    (said,) = [entry for entry in host.journal() if entry["step"] == "standby"]
    assert (said["because"], said["standby"]) == (because, not because)
    assert bool(host.acts()) == (not because)


def test_without_standby_the_journal_has_no_word_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = StandbyHost(tmp_path, monkeypatch)
    host.install(OLD, standby=False)
    host.stage(NEW, standby=False)
    assert host.switch() == "committed"
    assert not {"standby", "canary", "turn", "point"} & {entry["step"] for entry in host.journal()}


def test_nobody_waits_for_a_server_that_is_stopped(
    host: StandbyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = set()
    monkeypatch.setattr(control.Control, "end", lambda this: told.add(this.unit))
    host.switch()
    assert told == {host.paths.server_unit(OLD)}


@pytest.mark.parametrize(
    ("used", "slept_with", "room"),
    [
        (8_000, None, True),  # vLLM asks for 90 of 100 GB at its start
        (12_000, None, False),
        (12_000, 88_000, True),  # a wake needs no more than the server had
        (13_000, 88_000, False),
        (None, None, False),
    ],
)
def test_room_is_what_a_start_or_a_wake_needs(used: int | None, slept_with: int | None, room: bool) -> None:
    card = SimpleNamespace(memory_mib=100_000, used_mib=used, instance=None)
    release = SimpleNamespace(argv=["serve", "--gpu-memory-utilization", "0.9"], gpus=None)
    assert standby._has_room(card, release, slept_with) is room  # type: ignore[arg-type]
