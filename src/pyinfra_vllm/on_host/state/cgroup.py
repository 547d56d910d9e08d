"""Which systemd unit a process of this host belongs to, read from its control group as systemd does."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")
UNITS = (".service", ".scope", ".socket", ".mount", ".swap")  # those that have processes


def unit_of(process: Path) -> str | None:
    """The unit of the process with this folder of /proc: the one that this host's own systemd started it in.

    None where it belongs to none, or has ended. Cgroups that its processes make below it count for the unit:
    a container's own `vllm-chat.service` is part of the unit that runs the container, and not this host's
    service of that name.
    """
    try:
        path = _path(process / "cgroup")
        root = _path(process.parent / "1" / "cgroup") or ""
    except OSError:
        return None
    if path is None:
        return None
    inside = path[len(_root(root)) :] if path.startswith(_root(root) + "/") else path
    below = [name for name in inside.split("/") if name]
    while below and below[0].endswith(".slice"):
        below.pop(0)
    return below[0] if below and below[0].endswith(UNITS) else None


def _path(file: Path) -> str | None:
    """The process's place in systemd's hierarchy: version 1 calls it name=systemd, version 2 has number 0."""
    lines = [line.split(":", 2) for line in file.read_text(errors="replace").splitlines()]
    places = {controllers: path for _, controllers, path in (line for line in lines if len(line) == 3)}
    return places.get("name=systemd", places.get(""))


def _root(of_systemd: str) -> str:
    """Where systemd's own tree begins, from its first process's place; "" outside a container."""
    return of_systemd[: -len("/init.scope")] if of_systemd.endswith("/init.scope") else of_systemd.rstrip("/")
