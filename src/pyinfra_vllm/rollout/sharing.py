"""Which hosts of a run share a checkpoint, which of them ask the Hub, and who is told of whom. Pure.

pyinfra runs an operation on all hosts before the next one begins, so what one operation records of every host
is complete when the next one asks. With `-y` each is also prepared only then: the hosts join one after
another while the first one runs, and nobody may ask meanwhile who lacks the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..on_host.staging import pieces

HEX = frozenset("0123456789abcdef")

Part = tuple[int, int]  # the first byte, and the one after the last


@dataclass(frozen=True)
class Member:
    """A host that is to share a checkpoint: where others reach it, and whether it has all of it already."""

    host: str
    address: str
    port: int
    has: bool
    bytes_per_s: int | None = None


class Sharing:
    """One checkpoint among the hosts of one run."""

    def __init__(self, total_bytes: int, from_hub: int) -> None:
        """`from_hub`: so many hosts fetch from the Hub at most, each a part of it."""
        self.total_bytes = total_bytes
        self.from_hub = from_hub
        self.piece = pieces.piece_bytes(total_bytes)
        self._members: dict[str, Member] = {}
        self._pythons: dict[str, str] = {}
        self._hashes: dict[Part, str] = {}

    def join(self, member: Member) -> str:
        """Count a host in; returns why it can't be, or nothing."""
        for other in self._members.values():
            if other.host != member.host and other.address == member.address:
                return f"{other.host} has the same address, {member.address}"
        self._members[member.host] = member
        return ""

    def leave(self, host: str) -> None:
        """A host does not take part after all."""
        self._members.pop(host, None)

    def has_joined(self, host: str) -> bool:
        return host in self._members

    def can(self, host: str, python: str) -> None:
        """A host was asked, and has a Python with libtorrent."""
        self._pythons[host] = python

    def python(self, host: str) -> str:
        return self._pythons[host]

    @property
    def somebody_lacks_it(self) -> bool:
        return any(not member.has for member in self._members.values())

    @property
    def able(self) -> tuple[Member, ...]:
        """The members that can share, in the order of their names: the same one on every machine."""
        return tuple(self._members[host] for host in sorted(self._members) if host in self._pythons)

    @property
    def worthwhile(self) -> bool:
        """Whether there are two hosts at least, and one of them lacks the checkpoint."""
        return len(self.able) > 1 and any(not member.has for member in self.able)

    @cached_property
    def sources(self) -> dict[str, Part]:
        """The hosts that bring the checkpoint in, each with its part; asked first when all hosts have said
        whether they can share.

        Those that have it, so that nothing comes from the Hub; where none has, the first few.
        """
        if not self.worthwhile:
            return {}
        chosen = [member for member in self.able if member.has] or list(self.able)
        chosen = chosen[: self.from_hub]
        parts = pieces.parts(self.total_bytes, self.piece, len(chosen))
        return {member.host: part for member, part in zip(chosen, parts, strict=True) if part[0] < part[1]}

    @cached_property
    def substitutes(self) -> dict[str, Part]:
        """Other hosts for the parts that sources failed to bring; asked first when all sources have tried."""
        failed = {host for host, part in self.sources.items() if part in self.missing}
        others = [member for member in self.able if member.host not in failed]
        others.sort(key=lambda member: not member.has)
        return {member.host: part for member, part in zip(others, self.missing, strict=False)}

    def bring(self, part: Part, hashes: str) -> bool:
        """A host has this part, and these are the hashes of its pieces; whether they can be that."""
        begin, end = part
        if len(hashes) != 40 * pieces.count(end - begin, self.piece) or not set(hashes) <= HEX:
            return False
        self._hashes[part] = hashes
        return True

    @property
    def missing(self) -> tuple[Part, ...]:
        """The parts that nobody has brought."""
        return tuple(part for part in self.sources.values() if part not in self._hashes)

    @property
    def hashes(self) -> str:
        """Those of all pieces, in their order; empty as long as a part is missing."""
        return "" if self.missing else "".join(self._hashes[part] for part in self.sources.values())

    def takes_part(self, host: str) -> bool:
        return bool(self.hashes) and any(member.host == host for member in self.able)

    def member(self, host: str) -> Member:
        return self._members[host]

    def peers(self, host: str) -> tuple[tuple[str, int], ...]:
        """Address and port of the other hosts: nobody else is talked to."""
        return tuple((member.address, member.port) for member in self.able if member.host != host)
