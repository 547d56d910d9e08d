"""Reads a release's files into memory while the old release still serves, so that its start reads no disk.

Linux keeps what was read as long as nobody needs the memory, and takes it back from such files first: neither
the server that runs nor another process has less for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..inspect import gpus, nvidia

MEMINFO = Path("/proc/meminfo")
FREE_SHARE = 0.1  # of the memory stays out of this: the files would drive each other out
LIMIT_S = 120.0  # for all of them: about 60 GB of a disk that reads 0.5 GB/s
CHUNK = 8 << 20


class Warmed(NamedTuple):
    """How many files and bytes were read, in how many seconds; of how many bytes in all."""

    files: int
    bytes: int
    of_bytes: int
    seconds: float

    def __str__(self) -> str:
        part = "" if self.bytes == self.of_bytes else f" of {self.of_bytes / 1e9:.1f}"
        return f"{self.bytes / 1e9:.1f}{part} GB read into memory in {self.seconds:.0f} s"


def read_ahead(checkpoint: Path, runtime: Path | None) -> str:
    """Read the libraries of the runtime, where one is given, and all files of the checkpoint; in words.

    Never fails: a start that reads from the disk takes longer, no more.
    """
    try:
        if any(gpus.UNIFIED.search(card.name or "") for card in gpus.gpus()):
            return "not read ahead: the GPU has no memory but the host's"
    except nvidia.NoAnswer:
        pass  # a driver without an answer starts no server that could miss the memory
    try:
        libraries = sorted(runtime.rglob("*.so*")) if runtime else []
        files = [*libraries, *sorted(checkpoint.rglob("*"))]
        return str(warm(path for path in files if path.is_file()))
    except OSError as error:
        return f"not read ahead: {error}"


def warm(files: Iterable[Path], limit_s: float = LIMIT_S) -> Warmed:
    """Read the files, the first ones first, as far as memory and time go. Raises OSError."""
    sizes = {path: path.stat().st_size for path in files}
    room, began = _room(), time.monotonic()
    count = total = 0
    buffer = memoryview(bytearray(CHUNK))
    for path, size in sizes.items():
        if total + size > room:
            continue
        with path.open("rb", buffering=0) as file:
            while read := file.readinto(buffer):
                total += read
                if time.monotonic() - began > limit_s:
                    return Warmed(count, total, sum(sizes.values()), time.monotonic() - began)
        count += 1
    return Warmed(count, total, sum(sizes.values()), time.monotonic() - began)


def _room() -> int:
    """Bytes that are free, or taken by files that were read before."""
    lines = (line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines() if ":" in line)
    told = {name: int(value.split()[0]) << 10 for name, value in lines}
    return int(told["MemAvailable"] - FREE_SHARE * told["MemTotal"])
