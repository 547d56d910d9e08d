"""Hosts that share a checkpoint, each a real libtorrent session at an address of its own on this machine."""

from __future__ import annotations

import getpass
import hashlib
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hub_server import Fault, HubServer, serving
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_vllm.on_host import fetch, manifest, pieces
from pyinfra_vllm.on_host.download import Wanted

REPO = "acme/tiny-awq"
FILES = {
    "config.json": b'{"model_type": "qwen3"}',
    "model-1.safetensors": random.Random(1).randbytes(3_000_000),
    "more/model-2.safetensors": random.Random(2).randbytes(1_500_000),
}
TOTAL = sum(map(len, FILES.values()))
PIECE = pieces.piece_bytes(TOTAL)


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serving(HubServer(repositories={REPO: dict(FILES)}, token="hf_secret")) as running:
        yield running


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@dataclass
class Fleet:
    """Hosts at 127.0.7.1 and so on, each with a root of its own, and the Hub."""

    server: HubServer
    path: Path
    port: int = field(default_factory=free_port)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def address(self, host: int) -> str:
        return f"127.0.7.{host + 1}"

    def directory(self, host: int) -> Path:
        return self.path / str(host) / "root/checkpoints/acme--tiny-awq" / self.server.commit(REPO)

    def status(self, host: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / str(host) / "run/fetch-tiny.json").read_text())
        return found

    def start(self, host: int, **changes: Any) -> subprocess.Popen[bytes]:
        """The fetch on one host, in a process of its own."""
        home = self.path / str(host)
        home.mkdir(exist_ok=True)
        files = [
            {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for path, content in FILES.items()
        ]
        request = {
            "root": str(home / "root"),
            "run": str(home / "run"),
            "key": "tiny",
            "repo": REPO,
            "commit": self.server.commit(REPO),
            "endpoint": self.server.endpoint,
            "python": sys.executable,
            "files": files,
            "attempts": 1,
        }
        (home / "request.json").write_text(json.dumps(request | changes))
        (home / "hub-token").write_text("hf_secret" if "part" in changes or changes.get("token") else "")
        with (home / "log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "pyinfra_vllm.on_host", "fetch", str(home / "request.json")],
                env={"PATH": "/usr/bin:/bin", "CREDENTIALS_DIRECTORY": str(home)},
                stderr=log,
            )
        self.running.append(child)
        return child

    def begin(self, *hosts: int) -> str:
        """Each of the hosts fetches its part from the Hub; returns the hashes of all pieces."""
        parts = pieces.parts(TOTAL, PIECE, len(hosts))
        children = [
            self.start(host, part={"begin": begin, "end": end, "piece": PIECE})
            for host, (begin, end) in zip(hosts, parts, strict=True)
        ]
        assert [child.wait(120) for child in children] == [0] * len(hosts), self.log(*hosts)
        return "".join(self.status(host)["pieces"] for host in hosts)

    def order(self, host: int, hosts: list[int], hashes: str, **changes: Any) -> dict[str, Any]:
        peers = [[self.address(other), self.port] for other in hosts if other != host]
        return {
            "python": sys.executable,
            "piece": PIECE,
            "hashes": hashes,
            "address": self.address(host),
            "port": self.port,
            "peers": peers,
            "quiet_s": 10.0,
            "stall_s": 30.0,
            "user": getpass.getuser(),
        } | changes

    def share(self, hosts: list[int], hashes: str, **changes: Any) -> dict[int, subprocess.Popen[bytes]]:
        return {host: self.start(host, swarm=self.order(host, hosts, hashes, **changes)) for host in hosts}

    def whole(self, host: int) -> bool:
        """Whether the checkpoint is there, complete, and byte for byte what the Hub has."""
        directory = self.directory(host)
        return manifest.full_check(directory) == [] and all(
            (directory / path).read_bytes() == content for path, content in FILES.items()
        )

    def log(self, *hosts: int) -> str:
        return "\n".join((self.path / str(host) / "log").read_text() for host in hosts)

    def from_hub(self) -> int:
        return sum(self.server.sent(path) for path in FILES)


@pytest.fixture
def fleet(server: HubServer, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(server, tmp_path)
    yield made
    for child in made.running:
        child.kill()
        child.wait()


def test_four_hosts_get_a_checkpoint_that_two_fetched_half_each(fleet: Fleet) -> None:
    hashes = fleet.begin(0, 1)
    slack = 2 * 256 * 1024 + (1 << 22)  # what was on its way when the client had enough
    assert fleet.from_hub() < TOTAL + slack
    before = len(fleet.server.served)
    children = fleet.share([0, 1, 2, 3], hashes)
    for host, child in children.items():
        assert child.wait(240) == 0, fleet.log(host)
    assert all(fleet.whole(host) for host in range(4))
    assert len(fleet.server.served) == before, "only the parts came from the Hub"
    assert not list(fleet.path.rglob(".parts"))
