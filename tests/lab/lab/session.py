"""The lab as a whole: what it is built from, its hosts, its Hub, and its end, which leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from . import (
    checkpoints,
    gpus,
    image,
    leftovers,
    light_runtime,
    lock,
    network,
    prerequisites,
    stand_ins,
    venvs,
)
from .disk import Disk
from .hub import Hub
from .keeping import kept
from .layout import HUB_PORT, OPERATOR, STATE, WORK, Network, cache
from .machine import Host
from .shell import run, say
from .watch import Watchman


@dataclass(frozen=True)
class Parts:
    """The parts of hosts, all in the cache. A light lab has the stub of vLLM and stand-in checkpoints."""

    light: Path | None  # None beside a runtime by path: a stub is not needed there, and comes from a registry
    runtime: Path | None = None
    checkpoints: Mapping[str, Path] = field(default_factory=dict)  # repository -> directory


def prepare(light: bool = False) -> Parts:
    """Build what the cache lacks: the hosts' image, and beside it the runtime and then the checkpoints."""
    prerequisites.ensure()
    with ThreadPoolExecutor() as pool:
        image_made = pool.submit(image.prepare)
        real = None if light else venvs.real()
        made = checkpoints.made(real / "bin/python") if real else stand_ins.made()
        stub = None if venvs.named() else light_runtime.venv()
        image_made.result()
        return Parts(light=stub, runtime=real, checkpoints=made)


@dataclass
class Lab:
    """A running lab.

    Hosts are added by name; the Hub listens on the bridge, where hosts and this machine reach it.
    """

    parts: Parts
    hub: Hub
    key: Path
    known_hosts: Path
    layers: tuple[Path, ...]  # of the hosts' image
    hosts: dict[str, Host] = field(default_factory=dict)
    _addresses: int = 0
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self,
        *names: str,
        disks: Sequence[Disk] = (),
        binds: Mapping[Path, str] | None = None,
        suite: str = "",
        cards: Sequence[int] | None = None,
        devices: Sequence[Path] = (),
        timeout: float = 60,
    ) -> list[Host]:
        """Boot new hosts side by side and return when all answer over SSH.

        suite: their release of Debian (image.SUITES), where it is not this machine's
        cards: the GPUs that each of them has, by number; left out: all of the lab's, where its vLLM is one
            for GPUs
        devices: further device nodes of this machine
        """
        cards = gpus.for_hosts() if cards is None else cards
        given = {**gpus.driver(cards), **(binds or {})}
        nodes = (*gpus.devices(cards), *devices)
        added = [self._host(name, tuple(disks), given, suite, nodes) for name in names]
        for host in added:
            self.hosts[host.name] = host
            host.launch()
        for host in added:
            host.wait_ready(timeout)
        self.write_state()
        return added

    def remove(self, *names: str) -> None:
        for name in names:
            self.hosts.pop(name).remove()
        self.write_state()

    def write_state(self) -> None:
        """Write what inventory/lab.py reads, whole or not at all."""
        with self._writing:
            state = {
                "hosts": {host.name: host.address for host in self.hosts.values()},
                "user": OPERATOR,
                "key": str(self.key),
                "known_hosts": str(self.known_hosts),
                "hub": self.hub.url,
                "runtime": str(venvs.path() if self.parts.runtime else light_runtime.PATH),
                "package": venvs.package(),
                "pid": os.getpid(),
            }
            partial = STATE.with_suffix(".partial")
            partial.write_text(json.dumps(state, indent=1))
            partial.rename(STATE)

    def _host(
        self,
        name: str,
        disks: tuple[Disk, ...],
        binds: Mapping[Path, str],
        suite: str,
        devices: tuple[Path, ...],
    ) -> Host:
        layers, light = self.layers, self.parts.light
        if suite:
            layers, light = (image.base(suite),), light_runtime.venv(python=image.SUITES[suite])
        shared = {light: str(light_runtime.PATH)} if light else {}
        if self.parts.runtime:
            shared |= venvs.shared()
        address = Network().host(self._addresses)
        self._addresses += 1
        seen = {**shared, **binds}
        return Host(name, address, layers, self.key, self.known_hosts, seen, disks, devices)


@contextmanager
def lab(*names: str, light: bool = False) -> Iterator[Lab]:
    """A lab with hosts of these names; everything of it is gone afterwards, however the block ends.

    SIGTERM and SIGHUP end the block as Ctrl-C does. After SIGKILL the watchman clears up.
    """
    prerequisites.ensure()
    held = lock.acquire()
    with held, _signals_raise():
        leftovers.remove()
        parts = prepare(light)
        watchman = Watchman.hire(held)
        hub = Hub(Network().gateway, HUB_PORT)
        try:
            running = _begin(parts, hub, names)
            try:
                yield running
            finally:
                running.remove(*list(running.hosts))
        finally:
            hub.stop()
            leftovers.remove()
            watchman.dismiss()
            say("the lab is gone; nothing was left behind")


def _begin(parts: Parts, hub: Hub, names: Sequence[str]) -> Lab:
    WORK.mkdir(mode=0o711, parents=True)
    layers = image.layers()
    network.make_bridge(Network())
    hub.start()
    for repository, directory in parts.checkpoints.items():
        hub.publish(repository, directory)
    known_hosts = WORK / "known_hosts"
    known_hosts.touch()
    running = Lab(parts, hub, _key(), known_hosts, layers)
    running.add(*names)
    return running


def _key() -> Path:
    """The lab's SSH key, made once on this machine, whichever of several labs comes first."""
    return kept(cache() / "ssh", "making the lab's key", _make_key) / "id_ed25519"


def _make_key(place: Path) -> None:
    place.mkdir(mode=0o700)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "pyinfra-vllm-lab", "-f", place / "id_ed25519")


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, so that context managers get their turn."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
