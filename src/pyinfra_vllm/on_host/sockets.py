"""Who listens on a port of this host: a server that answers there need not be the one that was started."""

from __future__ import annotations

from pathlib import Path

from . import cgroup

_LISTEN = "0A"  # the state column of /proc/net/tcp (include/net/tcp_states.h: TCP_LISTEN is 10)


def strangers(port: int, unit: str, proc: Path = Path("/proc")) -> list[str]:
    """Processes outside the unit that listen on the port, as `name (process N)`; [] where there are none."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port, proc)}
    if not sockets:
        return []
    return [
        f"{_name(process)} (process {process.name})"
        for process in sorted(proc.glob("[0-9]*"), key=lambda entry: int(entry.name))
        if _holds(process, sockets) and not _belongs(process, unit)
    ]


def _listening(port: int, proc: Path) -> set[str]:
    inodes = set()
    for table in ("tcp", "tcp6"):
        path = proc / "net" / table
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            columns = line.split()
            if columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                inodes.add(columns[9])
    return inodes


def _holds(process: Path, sockets: set[str]) -> bool:
    try:
        return any(str(link.readlink()) in sockets for link in (process / "fd").iterdir())
    except OSError:  # it ended, or a descriptor was closed, while we looked
        return False


def _belongs(process: Path, unit: str) -> bool:
    return (
        cgroup.unit_of(process) == unit or not process.exists()
    )  # it ended while we looked, so it holds nothing any more


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "an ended program"
