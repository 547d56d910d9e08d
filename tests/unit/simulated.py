"""A simulated host for the transaction: real journal, links and locks on a real disk; systemd and vLLM are
stubs.

Every call that a real host could die at is counted. `die_at` makes the program die there: from then on
nothing it does has an effect, as after SIGKILL. `disk_full_at` fills the disk there.
"""

from __future__ import annotations

import errno
import functools
import getpass
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pyinfra_vllm.on_host.bench import probe
from pyinfra_vllm.on_host.bench.record import Phase, Record, Request
from pyinfra_vllm.on_host.server import gpu_memory, service, systemd
from pyinfra_vllm.on_host.server import release as releases
from pyinfra_vllm.on_host.state import durable, manifest
from pyinfra_vllm.on_host.state import journal as journals
from pyinfra_vllm.on_host.state.paths import SECRETS_FILE, ServicePaths
from pyinfra_vllm.on_host.switch import recovery, rollback, transaction
from pyinfra_vllm.on_host.switch.order import Order
from pyinfra_vllm.rendering import environment_file

OLD, NEW = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
LOG = ["Using MarlinLinearKernel for AutoAWQMarlinLinearMethod"]
WRITES = ("write", "write_text")  # what a full disk refuses; a rename needs no block


class Killed(BaseException):
    """SIGKILL, as far as Python can play it: no `except Exception` sees it."""


class SimulatedHost:
    """One service. `rates` says how fast a release is; a release in `broken` never serves,
    one in `dies_when_stopped` serves until it is stopped and never again. One in `crashing` ends at each
    start, with that log.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths = ServicePaths(root, "chat", root / "units")
        self.rates = {OLD: 100.0, NEW: 100.0}
        self.broken: set[str] = set()
        self.dies_when_stopped: set[str] = set()
        self.crashing: dict[str, list[str]] = {}
        self.looks_at_crash = 0  # since the last start: systemd restarts at every second one
        self.running: str | None = None
        self.loaded: str | None = None  # the release whose unit systemd has read
        self.starts: list[str | None] = []
        self.calls: list[str] = []
        self.die_at: int | None = None
        self.dead = False
        self.disk_full_at: int | None = None
        self.said: list[str] = []
        self.in_background: list[str] = []
        self.asked: list[
            tuple[str, str | None]
        ] = []  # the release that was measured, and the key it was asked with
        (root / "units").mkdir(parents=True)
        self.runtime = root / "runtime"
        self.runtime.mkdir()
        self._patch(monkeypatch)

    # What the tests do

    def stage(self, release_id: str, values: Mapping[str, str] | None = None, **more: Any) -> None:
        """Stage a release; `values` are those of its secrets."""
        document = {
            "id": release_id,
            "served_model_name": "m",
            "url": "http://127.0.0.1:1",
            "port": 1,
            "user": getpass.getuser(),
            "argv": ["/bin/sh", release_id],
            "checkpoint": {"directory": str(self.paths.root / "checkpoints" / release_id)},
            "runtime": {"version": "0.32.0", "path": str(self.runtime)},
            "stop_limit_s": 1,
            "secrets": sorted(values or ()),
            **more,
        }
        files = {name: "" for name in releases.FILES} | {"release.json": json.dumps(document)}
        if values:
            files[SECRETS_FILE] = environment_file(values)
        payload = self.paths.root / "payload.json"
        payload.write_text(json.dumps({"id": release_id, "user": getpass.getuser(), "files": files}))
        releases.stage(self.paths, payload)

    def install(self, release_id: str, values: Mapping[str, str] | None = None) -> None:
        """The release runs, as an earlier rollout left it."""
        self.stage(release_id, values)
        durable.point(self.paths.current, self.paths.release(release_id))
        self.paths.unit_link.symlink_to(self.paths.current / "vllm.service")
        self.paths.wants_link.parent.mkdir()
        self.paths.wants_link.symlink_to(self.paths.unit_link)
        self.running = self.loaded = release_id

    def switch(self, release_id: str = NEW, **order: Any) -> str:
        values: dict[str, Any] = {"service": "chat", "operator": "alice", "ready_timeout_s": 3.0}
        return transaction.switch(Order(release=release_id, **{**values, **order}), self.paths)

    def recover(self, boot: bool = False) -> list[str]:
        """Recover as systemd does after the program died; with `boot`, after a power cut."""
        self.dead, self.die_at = False, None
        if boot:
            self.running, self.loaded = None, self.current
        return self.recover_until_death(boot)

    def recover_until_death(self, boot: bool = False) -> list[str]:
        found = recovery.recover(self.paths.root, None, self.said.append, boot, self.paths.units)
        while self.in_background:
            assert self.in_background.pop() == self.paths.recovery_unit
            recovery.insist(self.paths, self.said.append, tries=2)
        return found

    def journal(self) -> list[journals.Entry]:
        return journals.read(self.paths.journal)

    def outcome(self) -> str | None:
        ends = [entry for entry in self.journal() if entry["step"] == "end"]
        return ends[-1]["outcome"] if ends else None

    @property
    def failing(self) -> str:
        """Why the old release could not be had again, as the journal says it; empty where it does not."""
        failed = [
            entry for entry in self.journal() if (entry["step"], entry["state"]) == ("restore", "failed")
        ]
        return str(failed[-1]["error"]) if failed else ""

    @property
    def current(self) -> str | None:
        return self.paths.linked(self.paths.current)

    # What is simulated

    def _patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stubs: list[tuple[Any, str, Callable[..., Any]]] = [
            (systemd, "daemon_reload", self._daemon_reload),
            (systemd, "start", self._start),
            (systemd, "forget_failure", lambda unit: None),
            (systemd, "start_in_background", self._start_in_background),
            (systemd, "stopping", lambda: False),
            (systemd, "stop", self._stop),
            (systemd, "show", self._show),
            (systemd, "running_release", lambda unit: self.running),
            (systemd, "started_release", lambda unit: self.running),
            (systemd, "log_cursor", lambda: "s=mark"),
            (systemd, "log_of_start", lambda unit, cursor: self.crashing.get(self.running or "", LOG)),
            (systemd, "log_since", lambda unit, cursor: self.crashing.get(self.running or "", LOG)),
            (
                service.Service,
                "_generation_problem",
                lambda this, release, timeout_s=60.0: self._generation_problem(release.id),
            ),
            (service.Service, "kv_cache", lambda this, release, log: {"tokens": 4096}),
            (probe, "measure", self._measure),
            (gpu_memory, "used_mib", lambda gpus: None),
        ]
        for owner, name, stub in stubs:
            monkeypatch.setattr(owner, name, self._mortal(name, stub))
        for owner, name in (
            (journals.Journal, "write"),
            (durable, "write_text"),
            (durable, "point"),
            (durable, "remove"),
        ):
            monkeypatch.setattr(owner, name, self._mortal(name, getattr(owner, name)))
        monkeypatch.setattr(manifest, "quick_check", lambda directory: [])
        monkeypatch.setattr(releases, "_readable", lambda release, files: None)
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # death is simulated, power is not
        monkeypatch.setattr(service, "POLL_S", 0.01)
        monkeypatch.setattr(rollback, "PAUSE_S", 0.0)
        monkeypatch.setattr(recovery, "FIRST_PAUSE_S", 0.0)
        monkeypatch.setattr(recovery, "REST", 0)
        monkeypatch.setattr(service.Service, "refused", lambda this: "")
        monkeypatch.setattr(rollback, "RESTORE_LEAST_S", 0.1)

    def _mortal(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.dead:
                raise Killed
            self.calls.append(name)
            if self.die_at is not None and len(self.calls) > self.die_at:
                self.dead = True
                raise Killed
            full = self.disk_full_at is not None and len(self.calls) > self.disk_full_at
            if full and name in WRITES:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*args, **kwargs)

        return call

    def _daemon_reload(self) -> None:
        self.loaded = self.current

    def _start(self, unit: str) -> None:
        self.starts.append(self.loaded)
        self.looks_at_crash = 0
        self.running = self.loaded

    def _start_in_background(self, unit: str) -> None:
        if unit == self.paths.unit:
            self._start(unit)
        else:
            self.in_background.append(unit)

    def _stop(self, unit: str, limit_s: float) -> None:
        if self.running in self.dies_when_stopped:
            self.broken.add(self.running)
        self.running = None

    def _show(self, unit: str, *properties: str) -> dict[str, str]:
        if properties == ("Environment",):
            return {"Environment": f"A=b PYINFRA_VLLM_RELEASE={self.loaded}" if self.loaded else ""}
        if properties == ("LoadState",):
            link = self.paths.unit_link
            masked = link.is_symlink() and link.readlink() == Path("/dev/null")
            return {"LoadState": "masked" if masked else "loaded"}
        looping = self.running in self.broken
        if self.running in self.crashing:
            self.looks_at_crash += 1
            waits = self.looks_at_crash % 2
            return {
                "ActiveState": "activating" if waits else "active",
                "SubState": "auto-restart" if waits else "running",
                "NRestarts": str(self.looks_at_crash // 2),
                "Result": "exit-code",
                "ExecMainStatus": "1",
            }
        return {
            "ActiveState": "inactive" if self.running is None else "failed" if looping else "active",
            "NRestarts": "0",
            "Result": "exit-code",
            "ExecMainStatus": "2",
        }

    def _generation_problem(self, release_id: str) -> str:
        serves = self.running == release_id and release_id not in {*self.broken, *self.crashing}
        return "" if serves else "connection refused"

    def _measure(self, client: Any, settings: Any, **how: Any) -> Record:
        assert self.running is not None
        self.asked.append((self.running, client._api_key))
        rate = self.rates[self.running]
        requests = tuple(
            Request(f"p{n:03}", True, 5 / rate, (5 + n % 3) / rate * 10, 64, 32) for n in range(24)
        )
        phases = tuple(Phase(f"c{c}", c, 24 * 32 / rate, requests) for c in (1, 8))
        return Record("m", {}, phases, spent_s=999.0)


def bottomless(top: Path, depth: int) -> None:
    """Deeper than Python's recursion, the descriptors of a process and the length of a path."""
    folder = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=folder)
        below = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
