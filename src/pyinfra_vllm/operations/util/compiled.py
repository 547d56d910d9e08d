"""Brings the compile cache of a host that serves a release to the others of the rollout, before they switch.

None of it fails a host: one that gets no cache compiles for itself, and the reason is said.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from gevent.lock import RLock
from pyinfra import logger
from pyinfra.api import Host

from pyinfra_vllm import answers
from pyinfra_vllm.answers import T
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.on_host.staging.compiled import MOST_BYTES, PIECE
from pyinfra_vllm.operations.util.remote import LOST, Remote, program
from pyinfra_vllm.operations.util.unit import ANSWER_S
from pyinfra_vllm.printable import printable
from pyinfra_vllm.rollout.progress import PROGRESS, Wanted

FORMAT = "05d"  # pieces are put together in the order of their names
PACK_S = 120
HEADERS = 64 << 20  # of an archive, beside its files


@dataclass
class Cache:
    """The archive that a host gave, in `file`; or the reason why it gave none, in `problem`."""

    donor: str = ""
    machine: str = ""
    sha256: str = ""
    problem: str = ""
    file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)


class Caches:
    """Those of this run, by release and kind of GPU; each is fetched once, however many hosts wait for it."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._fetched: dict[tuple[str, str], Cache] = {}

    def of(self, host: Host, item: Wanted) -> Cache | None:
        """The cache that this host could use; None where no host has one."""
        with self._lock:
            key = (item.release.id, item.gpu)
            if key not in self._fetched:
                donors = PROGRESS.donors(item)
                if not donors:
                    return None
                donor = host.state.inventory.get_host(donors[0])
                self._fetched[key] = _fetch(donor, item)
            return self._fetched[key]


CACHES = Caches()


def bring(host: Host, item: Wanted) -> None:
    """Have the host start its new release with what another host has compiled for it."""
    if not PROGRESS.settings.share_compile_cache:
        return
    asked = _Program(host, item)
    try:
        told = asked.ask(answers.CompiledWanted, "wanted")
        found = CACHES.of(host, item) if told["wanted"] else None
        if found is None:
            return
        problem = found.problem
        if not problem and told["machine"] != found.machine:
            problem = f"its processor, C library, GPU or driver is not that of {found.donor}"
        if problem:
            _say(host, item, f"compiles for itself: {problem}")
            return
        count = _send(asked, found)
    except LOST as error:
        _say(host, item, f"compiles for itself: {error}")
        return
    _say(host, item, f"has {count} files that {found.donor} compiled")


class _Program:
    """The program on one host, about one release."""

    def __init__(self, host: Host, item: Wanted) -> None:
        self.remote = Remote(host)
        self.words = (*program(item.root), "compiled")
        self.about = (item.service.name, item.release.id)

    def ask(self, kind: type[T], do: str, *words: str, limit_s: int = ANSWER_S) -> T:
        return self.remote.json(kind, *self.words, do, *self.about, *words, timeout_s=limit_s)


def _fetch(donor: Host, item: Wanted) -> Cache:
    cache = Cache(donor.name)
    asked = _Program(donor, item)
    try:
        packed = asked.ask(answers.CompiledPacked, "pack", limit_s=PACK_S)
        if packed["bytes"] > MOST_BYTES + HEADERS:
            raise HostError(f"its compile cache has {packed['bytes'] >> 20} MiB")
        cache.machine, cache.sha256 = packed["machine"], packed["sha256"]
        for number in range(-(-packed["bytes"] // PIECE)):
            told = asked.ask(answers.CompiledPiece, "piece", "--number", str(number))
            cache.file.write(_decoded(told["base64"]))
        asked.ask(dict[str, str], "forget")
    except (*LOST, ValueError) as error:
        cache.problem = f"{donor.name} gave nothing: {error}"
    return cache


def _decoded(piece: str) -> bytes:
    """The bytes of a piece. Raises ValueError where it is no base64 or too long: all must fit here."""
    found = base64.b64decode(piece, validate=True)
    if len(found) > PIECE:
        raise ValueError(f"a piece of its compile cache has {len(found)} bytes instead of at most {PIECE}")
    return found


def _send(asked: _Program, cache: Cache) -> int:
    folder = asked.ask(answers.CompiledFolder, "expect")["folder"]
    for number, piece in enumerate(_pieces(cache)):
        asked.remote.write(str(Path(folder) / format(number, FORMAT)), piece)
    words = ("--sha256", cache.sha256, "--donor", cache.donor)
    return asked.ask(answers.CompiledTaken, "take", *words, limit_s=PACK_S)["files"]


def _pieces(cache: Cache) -> Iterator[bytes]:
    """Of one file for all hosts: no host's turn may move it for another."""
    position = 0
    while True:
        cache.file.seek(position)
        piece = cache.file.read(PIECE)
        if not piece:
            return
        position += len(piece)
        yield piece


def _say(host: Host, item: Wanted, text: str) -> None:
    logger.info(f"{host.print_prefix}{item.service.name}: {printable(text)}")
