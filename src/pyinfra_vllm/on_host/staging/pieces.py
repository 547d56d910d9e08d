"""A checkpoint as one row of bytes, file after file in the order of the lock, cut into pieces of one size.

Hosts that share a checkpoint name its pieces by number. The lock file has no hash of pieces, only of files:
the hosts that fetch from the Hub hash the pieces of their own part. Such a hash finds out who sends garbage;
whether a file is right is decided by the lock file's hash alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SMALLEST_PIECE, LARGEST_PIECE = 1 << 18, 1 << 24
MANY_PIECES = 4096  # their hashes travel through the control machine: 160 kB


class Sized(Protocol):
    """A file of the checkpoint."""

    @property
    def path(self) -> str: ...

    @property
    def size(self) -> int: ...


@dataclass(frozen=True)
class Span:
    """The bytes of one file from `start` to before `end`."""

    path: str
    start: int
    end: int


def piece_bytes(total: int) -> int:
    """The size of a piece, a power of two: as small as `MANY_PIECES` of them allow."""
    size = SMALLEST_PIECE
    while size < LARGEST_PIECE and size * MANY_PIECES < total:
        size *= 2
    return size


def count(total: int, piece: int) -> int:
    """How many pieces `total` bytes have; the last one may be shorter."""
    return -(-total // piece)


def parts(total: int, piece: int, hosts: int) -> list[tuple[int, int]]:
    """One range of bytes for each host, in whole pieces, together all of them.

    Some are empty where there are more hosts than pieces.
    """
    pieces = count(total, piece)
    cuts = [min(total, pieces * number // hosts * piece) for number in range(hosts + 1)]
    return list(zip(cuts, cuts[1:]))


def spans(files: Sequence[Sized], begin: int, end: int) -> Iterator[Span]:
    """The places of a range of bytes in the files; files without bytes in it are left out."""
    at = 0
    for file in files:
        start, stop = max(begin - at, 0), min(end - at, file.size)
        if start < stop:
            yield Span(file.path, start, stop)
        at += file.size


def hashes(directory: Path, files: Sequence[Sized], begin: int, end: int, piece: int) -> Iterator[str]:
    """The sha1 in hex of each piece between two of their borders, as the files have them now."""
    digest, room = hashlib.sha1(), piece
    for span in spans(files, begin, end):
        with (directory / span.path).open("rb") as file:
            file.seek(span.start)
            left = span.end - span.start
            while left:
                chunk = file.read(min(room, left))
                if not chunk:
                    raise OSError(f"{directory / span.path} ends before byte {span.end}")
                digest.update(chunk)
                left, room = left - len(chunk), room - len(chunk)
                if not room:
                    yield digest.hexdigest()
                    digest, room = hashlib.sha1(), piece
    if room < piece:
        yield digest.hexdigest()
