"""Hosts that share a checkpoint, each a real libtorrent session at an address of its own on this machine."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("libtorrent", reason="make .venv/complete installs it")
import lying_peer
from hub_server import Fault, HubServer, serving
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_vllm.on_host.staging import pieces, swarm
from pyinfra_vllm.on_host.staging.download import Wanted
from pyinfra_vllm.on_host.state import manifest
from pyinfra_vllm.on_host.state.status import Status

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

    def request(self, host: int, **changes: Any) -> Path:
        """The request to fetch, in a file."""
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
        path = home / "request.json"
        path.write_text(json.dumps(request | changes))
        return path

    def start(self, host: int, **changes: Any) -> subprocess.Popen[bytes]:
        """The fetch on one host, in a process of its own."""
        request, home = self.request(host, **changes), self.path / str(host)
        (home / "hub-token").write_text("hf_secret" if "part" in changes or changes.get("token") else "")
        with (home / "log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "pyinfra_vllm.on_host", "fetch", str(request)],
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
        with child:  # closes what it was told by
            pass


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_sharing_ends_when_all_have_it_and_nobody_waits_for_who_has_gone(fleet: Fleet) -> None:
    hashes = fleet.begin(0)
    children = fleet.share([0, 1, 2, 3], hashes, quiet_s=600.0)
    for host, child in children.items():
        assert child.wait(60) == 0, fleet.log(host)


@pytest.mark.thorough  # seconds to half a minute of real transfers
def test_peer_that_sends_garbage_costs_time_only(fleet: Fleet) -> None:
    hosts = [0, 1, 2, 3]
    hashes = fleet.begin(0)
    fetching = fleet.start(2, swarm=fleet.order(2, hosts, hashes, bytes_per_s=1 << 20))
    request = fleet.request(1, swarm=fleet.order(1, hosts, hashes))
    fleet.running.append(subprocess.Popen([sys.executable, lying_peer.__file__, str(request)]))
    time.sleep(3)  # the only one that it finds for now
    others = [fleet.start(host, swarm=fleet.order(host, hosts, hashes)) for host in (0, 3)]
    for child in (fetching, *others):
        assert child.wait(240) == 0, fleet.log(0, 2, 3)
    assert all(fleet.whole(host) for host in (0, 2, 3))
    assert "bytes of other content came from others; thrown away" in fleet.log(2)


@pytest.mark.thorough
def test_source_that_hashes_wrong_bytes_is_found_out_by_the_lock(fleet: Fleet) -> None:
    fleet.server.faults["model-1.safetensors"] = Fault(content=bytes(3_000_000))
    hashes = fleet.begin(0)
    del fleet.server.faults["model-1.safetensors"]
    for host, child in fleet.share([0, 1], hashes).items():
        assert child.wait(240) == 1
        assert not fleet.directory(host).exists()
        assert "model-1.safetensors has other content than the lock file states" in fleet.log(host)
    before = fleet.server.sent("more/model-2.safetensors")
    assert fleet.start(1, token=True).wait(120) == 0, fleet.log(1)
    assert fleet.whole(1)
    assert fleet.server.sent("more/model-2.safetensors") == before, "what was right was kept"


@pytest.mark.thorough  # seconds to half a minute of real transfers
def test_killed_host_is_not_waited_for(fleet: Fleet) -> None:
    hashes = fleet.begin(0)
    children = fleet.share([0, 1, 2], hashes, bytes_per_s=400_000)
    time.sleep(4)
    children[2].kill()
    for host in (0, 1):
        assert children[host].wait(240) == 0, fleet.log(host)
        assert fleet.whole(host)
    assert not fleet.directory(2).exists()


@pytest.mark.thorough  # seconds to half a minute of real transfers
def test_killed_source_leaves_the_rest_to_the_hub(fleet: Fleet) -> None:
    hashes = fleet.begin(0, 1)
    child = fleet.share([0, 2], hashes, stall_s=6.0)[2]
    assert child.wait(240) == 1
    assert "the swarm of the other hosts sent" in fleet.log(2)
    assert fleet.start(2, token=True).wait(120) == 0, fleet.log(2)
    assert fleet.whole(2)


@pytest.mark.thorough  # seconds to half a minute of real transfers
def test_slow_host_slows_nobody_and_gets_all(fleet: Fleet) -> None:
    hashes = fleet.begin(0)
    began = time.monotonic()
    slow = fleet.start(1, swarm=fleet.order(1, [0, 1, 2], hashes, bytes_per_s=300_000))
    others = {host: fleet.start(host, swarm=fleet.order(host, [0, 1, 2], hashes)) for host in (0, 2)}
    assert slow.wait(300) == 0, fleet.log(1)
    assert time.monotonic() - began > TOTAL / 300_000 / 2, "addresses of private networks are limited, too"
    for host, child in others.items():
        assert child.wait(120) == 0, fleet.log(host)
    assert all(fleet.whole(host) for host in range(3))


@pytest.mark.thorough  # seconds to half a minute of real transfers
def test_complete_host_is_a_source_and_asks_no_hub(fleet: Fleet) -> None:
    assert fleet.start(0, token=True).wait(120) == 0, fleet.log(0)
    before = fleet.from_hub()
    hashes = fleet.begin(0)
    for host, child in fleet.share([0, 1], hashes).items():
        assert child.wait(240) == 0, fleet.log(host)
    assert fleet.whole(0) and fleet.whole(1)
    assert fleet.from_hub() == before


@pytest.mark.thorough
def test_address_outside_the_fleet_is_not_talked_to(fleet: Fleet) -> None:
    hashes = fleet.begin(0)
    order = fleet.order(0, [0, 1], hashes)
    greeting = lying_peer.greeting(json.loads(fleet.request(0, swarm=order).read_text()))
    fleet.start(0, swarm=order)

    def answers(address: str) -> bool:
        with suppress(OSError), socket.socket() as other:
            other.settimeout(5)
            other.bind((address, 0))
            other.connect((fleet.address(0), fleet.port))
            other.sendall(greeting)
            return other.recv(1) == b"\x13"
        return False

    until = time.monotonic() + 60
    while not answers(fleet.address(1)):
        assert time.monotonic() < until
        time.sleep(0.2)
    assert not answers("127.0.9.9")


@pytest.mark.thorough
@pytest.mark.parametrize(("hosts", "code"), [((0, 1), 1), ((0,), 0)], ids=["half is here", "all is here"])
def test_missing_libtorrent_is_said(fleet: Fleet, tmp_path: Path, hosts: tuple[int, ...], code: int) -> None:
    hashes = fleet.begin(*hosts)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without site-packages
    python.chmod(0o755)
    assert fleet.start(0, swarm=fleet.order(0, [0, 1], hashes, python=str(python))).wait(60) == code
    assert "No module named 'libtorrent'" in (fleet.status(0)["error"] if code else fleet.log(0))


def test_file_that_somebody_may_still_write_to_is_copied(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "more").mkdir(parents=True)
    content = {"free.bin": b"right", "more/held.bin": b"right", "more/wrong.bin": b"wrong"}
    files = [Wanted(path, 5, hashlib.sha256(b"right").hexdigest()) for path in (*content, "missing.bin")]
    for path, data in content.items():
        (tree / path).write_bytes(data)
    (tree / "link.bin").symlink_to(tree / "free.bin")
    files.append(Wanted("link.bin", 5, files[0].sha256))
    kept: dict[str, Path] = {}

    def keep(file: Wanted, path: Path, _: str) -> None:
        kept[file.path] = path.replace(tmp_path / f"kept-{len(kept)}")

    with (tree / "more/held.bin").open("r+b") as writer:
        wrong = swarm.keep_right(tree, files, keep, Status(tmp_path / "status.json"))
        writer.write(b"WRONG")
    assert wrong == ["more/wrong.bin", "missing.bin", "link.bin"]
    assert [path.read_bytes() for path in kept.values()] == [b"right", b"right"]
    assert (tree / "more/held.bin").read_bytes() == b"WRONG"


@pytest.mark.parametrize("left", ["link to a folder", "link", "second name", "pipe", "file for a folder"])
def test_tree_that_leads_elsewhere_is_not_used_again(tmp_path: Path, left: str) -> None:
    """Its user could have left anything in the tree, and root writes there in the next run."""
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    outside.mkdir()
    (outside / "model.bin").write_bytes(b"precious")
    tree.mkdir()
    if left == "link to a folder":
        (tree / "more").symlink_to(outside)
    elif left == "file for a folder":
        (tree / "more").write_bytes(b"")
    else:
        (tree / "more").mkdir()
    if left == "link":
        (tree / "more/model.bin").symlink_to(outside / "model.bin")
    elif left == "second name":
        os.link(outside / "model.bin", tree / "more/model.bin")
    elif left == "pipe":
        os.mkfifo(tree / "more/model.bin")
    swarm.reclaim(tree, [Wanted("missing/model.bin", 5, "0" * 64), Wanted("more/model.bin", 5, "0" * 64)])
    assert not tree.exists()
    assert (outside / "model.bin").read_bytes() == b"precious"
    assert (outside / "model.bin").stat().st_mode & 0o777 == 0o644


def test_tree_without_tricks_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir(mode=0o777)
    (tmp_path / "more/model.bin").write_bytes(b"right")
    swarm.reclaim(tmp_path, [Wanted("more/model.bin", 5, "0" * 64), Wanted("missing/x", 5, "0" * 64)])
    assert (tmp_path / "more/model.bin").read_bytes() == b"right"
    assert (tmp_path / "more").stat().st_mode & 0o777 == 0o755
    swarm.reclaim(tmp_path / "never", [Wanted("x", 5, "0" * 64)])


def test_file_that_grew_while_others_may_write_is_not_copied_whole(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    path = tree / "grown.bin"
    path.write_bytes(b"right")
    wanted = Wanted("grown.bin", 5, hashlib.sha256(b"right").hexdigest())
    with path.open("r+b") as writer:
        writer.truncate(64 << 20)
        status = Status(tmp_path / "status.json")
        assert swarm.keep_right(tree, [wanted], lambda *_: None, status) == ["grown.bin"]
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("name", ["second.bin", "pipe.bin"])
def test_file_with_a_second_name_and_no_file_are_not_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / "second.bin").write_bytes(b"right")
    os.link(tmp_path / "second.bin", tmp_path / "first.bin")
    os.mkfifo(tmp_path / "pipe.bin")
    wanted = Wanted(name, 5, hashlib.sha256(b"right").hexdigest())
    assert swarm.keep_right(tmp_path, [wanted], lambda *_: None, Status(tmp_path / "status.json")) == [name]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "event",
    [
        {"bytes": "many"},
        {"garbage": None, "whole": "yes"},
        {"bytes": -5},
        {"bytes": 1 << 70, "lacking": [], "connected": {}},
        {"error": {"deep": 1}},
    ],
)
def test_invalid_output_of_the_child_raises_no_unexpected_error(
    event: dict[str, Any], fleet: Fleet, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{json.dumps(event)}'\n")
    python.chmod(0o755)
    order = fleet.order(0, [0, 1], "ab" * 20, python=str(python))
    assert fleet.start(0, swarm=order).wait(60) == 1
    assert fleet.status(0)["error"].startswith("not all of it came from the other hosts: ")
    assert "Traceback" not in fleet.log(0)


ENDLESS = 'while :; do echo "{event}"; sleep 0.1; done'


def with_one_peer(python: Path, **more: Any) -> swarm.Order:
    peers, hashes = (("127.0.0.2", 1),), "ab" * 20
    return swarm.Order(
        str(python), pieces.SMALLEST_PIECE, hashes, "127.0.0.1", 1, peers, user=getpass.getuser(), **more
    )


@pytest.mark.parametrize(
    "script, reason",
    [
        ("exec sleep 60", "said nothing for"),
        ("exec 1>&-; exec sleep 60", "said nothing for"),
        (ENDLESS.replace("{event}", '{\\"checking\\": true}'), "sent 0 bytes"),
        ("b=0; " + ENDLESS.replace("{event}", '{\\"bytes\\": $((b += 999999))}'), "less than 65536 bytes/s"),
        (ENDLESS.replace("{event}", '{\\"whole\\": true}'), "did not end by itself"),
        ("echo '{\"whole\": true}'; exec sleep 60", "said nothing for"),
    ],
    ids=["mute", "closed", "checking", "beyond its end", "whole", "whole and mute"],
)
def test_child_that_never_ends_is_ended(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(swarm, "SHORTEST_S", 1.0)
    file = Wanted("model.bin", 2_000_000, "0" * 64)
    order = with_one_peer(python, stall_s=2.0)
    shared = swarm.Swarm(order, tmp_path / "parts" / "tree", [file], Status(tmp_path / "status.json"))
    began = time.monotonic()
    assert reason in shared.run([file], lambda *_: None, lambda _: None)
    assert time.monotonic() - began < 20


def test_what_is_here_and_right_counts_however_its_child_ended(tmp_path: Path) -> None:
    python, tree, kept = tmp_path / "python", tmp_path / "parts" / "tree", []
    python.write_text('#!/bin/sh\necho \'{"whole": true}\'; echo \'{"error": "a crash"}\'\n')
    python.chmod(0o755)
    tree.mkdir(parents=True)
    (tree / "model.bin").write_bytes(b"right")
    file = Wanted("model.bin", 5, hashlib.sha256(b"right").hexdigest())
    order = with_one_peer(python)
    shared = swarm.Swarm(order, tree, [file], Status(tmp_path / "status.json"))
    assert shared.run([file], lambda file, *_: kept.append(file.path), lambda _: None) == ""
    assert kept == ["model.bin"]


@pytest.mark.thorough
def test_interrupted_part_is_not_fetched_again(fleet: Fleet) -> None:
    first = fleet.begin(0)
    before = fleet.from_hub()
    assert fleet.begin(0) == first
    assert fleet.from_hub() == before


@pytest.mark.thorough
def test_shared_folder_is_asked_before_the_hub(fleet: Fleet, tmp_path: Path) -> None:
    shared = tmp_path / "shared" / "acme--tiny-awq" / fleet.server.commit(REPO)
    for path, content in FILES.items():
        (shared / path).parent.mkdir(parents=True, exist_ok=True)
        (shared / path).write_bytes(content if path != "model-1.safetensors" else bytes(len(content)))
    assert fleet.start(0, shared=str(tmp_path / "shared"), token=True).wait(120) == 0, fleet.log(0)
    assert fleet.whole(0)
    assert {request.path for request in fleet.server.served} == {"model-1.safetensors"}


@given(
    sizes=st.lists(st.integers(0, 700), min_size=1, max_size=8).filter(any),
    hosts=st.integers(1, 9),
    piece=st.sampled_from([1, 7, 64, 256]),
)
def test_parts_are_all_bytes_once_in_whole_pieces(sizes: list[int], hosts: int, piece: int) -> None:
    files = [Wanted(f"f{number}", size, "0" * 64) for number, size in enumerate(sizes)]
    total = sum(sizes)
    parts = pieces.parts(total, piece, hosts)
    assert len(parts) == hosts
    assert [begin for begin, _ in parts] == [0, *(end for _, end in parts[:-1])]
    assert parts[-1][1] == total
    assert all(begin % piece == 0 for begin, _ in parts if begin < total)
    seen = [
        (span.path, byte)
        for begin, end in parts
        for span in pieces.spans(files, begin, end)
        for byte in range(span.start, span.end)
    ]
    assert seen == [(file.path, byte) for file in files for byte in range(file.size)]


def test_hashes_of_the_parts_are_those_of_the_whole(tmp_path: Path) -> None:
    contents = [random.Random(number).randbytes(size) for number, size in enumerate((300, 0, 5, 1000, 64))]
    files = [Wanted(f"f{number}", len(content), "0" * 64) for number, content in enumerate(contents)]
    for file, content in zip(files, contents, strict=True):
        (tmp_path / file.path).write_bytes(content)
    row = b"".join(contents)
    expected = [hashlib.sha1(row[at : at + 64]).hexdigest() for at in range(0, len(row), 64)]
    for hosts in (1, 2, 5):
        parts = pieces.parts(len(row), 64, hosts)
        found = [item for begin, end in parts for item in pieces.hashes(tmp_path, files, begin, end, 64)]
        assert found == expected


@given(total=st.integers(1, 8 * 1024**4))
def test_pieces_are_few_or_large(total: int) -> None:
    piece = pieces.piece_bytes(total)
    assert piece & (piece - 1) == 0 and pieces.SMALLEST_PIECE <= piece <= pieces.LARGEST_PIECE
    assert piece == pieces.LARGEST_PIECE or pieces.count(total, piece) <= pieces.MANY_PIECES
