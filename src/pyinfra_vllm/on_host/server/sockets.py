"""Finds the listeners on a port of this host: another server than the one that was started may answer there.

Asked of the kernel. A process can hide its descriptors from /proc, and call its control group as it likes
below one that is its own; it can't choose the user of its sockets, nor their control group.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..state import cgroup
from . import systemd

PROC = Path("/proc")
# linux/sock_diag.h, linux/netlink.h and linux/inet_diag.h
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLM_F_DUMP_REQUEST = 4, 20, 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_INET_DIAG_CGROUP_ID = 21
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBBxI")  # family, protocol, extensions, states; the socket's address follows
_ADDRESS = struct.Struct("!HH16s16s")  # ports and addresses of both sides
_REST_OF_ADDRESS = struct.Struct("=I8s")  # interface, cookie
_COUNTS = struct.Struct("=IIIII")  # expires, queues, user, inode
_ANSWER_BYTES = 4 + _ADDRESS.size + _REST_OF_ADDRESS.size + _COUNTS.size
_CREDENTIALS = struct.Struct("3i")  # process, user, group: `struct ucred` of unix(7)
_LISTEN = 10  # include/net/tcp_states.h: TCP_LISTEN; in /proc/net/tcp in hexadecimal


@dataclass(frozen=True)
class Listener:
    """A listening socket as the kernel knows it.

    cookie: no other socket of this boot has it; empty where the kernel does not tell
    group: the id of the control group (version 2) in which it was made; None where the kernel does not tell
    """

    inode: int
    user: int
    cookie: bytes = b""
    group: int | None = None


def listeners(port: int) -> frozenset[Listener]:
    """All sockets that listen on the port, at whatever address."""
    try:
        return frozenset(
            found for family in (socket.AF_INET, socket.AF_INET6) for found in _asked(port, family)
        )
    except OSError:  # a kernel without tcp_diag
        return frozenset(_read(port))


def unit_behind(connected: socket.socket) -> str | None:
    """The unit whose process listens at the other end of a Unix socket, by the kernel; else None."""
    told = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, _, _ = _CREDENTIALS.unpack(told)
    return cgroup.unit_of(cgroup.PROC / str(process))


def foreign_listeners(port: int, unit: str, found: Iterable[Listener] | None = None) -> list[str]:
    """Listeners on the port that are not shown to be the unit's, as `name (process N)`."""
    there = listeners(port) if found is None else found
    if not there:
        return []
    shown = systemd.show(unit, "ControlGroup", "MainPID", "UID")
    foreign = [listener for listener in there if not _owns(shown, listener)]
    # One that is gone may have been that of a unit that ended meanwhile.
    still = listeners(port) if foreign else frozenset()
    return [_name(listener) for listener in sorted(foreign, key=lambda one: one.inode) if listener in still]


def _owns(shown: dict[str, str], listener: Listener) -> bool:
    path, user = shown.get("ControlGroup"), shown.get("UID", "")
    if not user.isdigit():  # systemd's word for a unit without a user of its own
        user = "0"
    if not path or user != str(listener.user):
        return False
    groups = _groups(path, shown.get("MainPID", "0"))
    if groups and listener.group is not None:
        return listener.group in groups
    return any(_holds(task, listener) for process in _processes(path) for task in process.glob("task/*"))


def _groups(path: str, main_pid: str) -> set[int]:
    """The ids of the unit's control group and those below it; none without a tree of version 2."""
    try:
        lines = (PROC / main_pid / "cgroup").read_text().splitlines()
        mounts = (PROC / "self" / "mountinfo").read_text()
    except OSError:
        return set()
    place = re.search(r"^\d+ \d+ \S+ / (\S+) [^\n]* - cgroup2 ", mounts, re.M)
    if place is None or not any(
        _below(line.partition("0::")[2], path) for line in lines if line.startswith("0::")
    ):
        return set()
    return {Path(folder).stat().st_ino for folder, _, _ in os.walk(place[1] + path)}


def _processes(path: str) -> Iterator[Path]:
    """The processes in a control group, by the tree that systemd keeps its units in."""
    for process in PROC.glob("[0-9]*"):
        try:
            lines = (process / "cgroup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        ours = [line.split(":", 2)[2] for line in lines if line.split(":", 2)[1] in ("", "name=systemd")]
        if any(_below(group, path) for group in ours):
            yield process


def _below(group: str, path: str) -> bool:
    return group == path or group.startswith(f"{path}/")


def _holds(task: Path, listener: Listener) -> bool:
    """Each thread may have descriptors of its own."""
    name = f"socket:[{listener.inode}]"
    try:
        links = list((task / "fd").iterdir())
    except OSError:  # it ended while we looked
        return False
    return any(_leads_to(link, name) for link in links)


def _leads_to(link: Path, name: str) -> bool:
    """Descriptors may be closed while we look: systemd opens and closes them all the time."""
    try:
        return str(link.readlink()) == name
    except OSError:
        return False


def _name(listener: Listener) -> str:
    """The process that has the socket, as far as that can be seen."""
    for process in sorted(PROC.glob("[0-9]*"), key=lambda entry: int(entry.name)):
        if any(_holds(task, listener) for task in process.glob("task/*")):
            try:
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
            except OSError:
                break
    return f"a hidden program of the user with the number {listener.user}"


def _asked(port: int, family: int) -> Iterator[Listener]:
    """The kernel's own answer (sock_diag). Raises OSError where it has none."""
    address = _ADDRESS.pack(port, 0, b"", b"") + _REST_OF_ADDRESS.pack(0, b"\xff" * 8)
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _LISTEN) + address
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_DUMP_REQUEST, 1, 0)
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
    ) as kernel:
        kernel.settimeout(5)
        kernel.send(header + request)
        while True:
            data, (sender, _) = kernel.recvfrom(1 << 18)
            for kind, body in _messages(data) if sender == 0 else ():  # 0 is the kernel
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    raise OSError(-struct.unpack_from("=i", body)[0], "sock_diag")
                yield from _listener(body, port)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def _listener(body: bytes, port: int) -> Iterator[Listener]:
    if len(body) < _ANSWER_BYTES or _ADDRESS.unpack_from(body, 4)[0] != port:
        return
    _, cookie = _REST_OF_ADDRESS.unpack_from(body, 4 + _ADDRESS.size)
    *_, user, inode = _COUNTS.unpack_from(body, _ANSWER_BYTES - _COUNTS.size)
    yield Listener(inode, user, cookie, _group(body[_ANSWER_BYTES:]))


def _group(attributes: bytes) -> int | None:
    while len(attributes) >= 4:
        length, kind = struct.unpack_from("=HH", attributes)
        if kind == _INET_DIAG_CGROUP_ID and length == 12:
            return int(struct.unpack_from("=Q", attributes, 4)[0])
        attributes = attributes[max(4, (length + 3) & ~3) :]
    return None


def _read(port: int) -> Iterator[Listener]:
    """The same from /proc, which tells neither cookie nor control group."""
    for table in ("tcp", "tcp6"):
        path = PROC / "net" / table
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            columns = line.split()
            if int(columns[3], 16) == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                yield Listener(int(columns[9]), int(columns[7]))
