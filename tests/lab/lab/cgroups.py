"""A control group for each host, so that one host's systemd never meets the processes of another in a unit of
the same name.

Where this machine runs systemd, it makes a scope for each container by itself, and nothing here is needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from .layout import MACHINE_PREFIX

_GROUPS = Path("/sys/fs/cgroup")
_UNIFIED = (_GROUPS / "cgroup.controllers").exists()
_HIERARCHIES = (_GROUPS,) if _UNIFIED else (_GROUPS / "systemd", _GROUPS / "unified")


def hierarchies() -> list[Path]:
    """Where hosts get groups of their own on this machine; none where its systemd makes their scopes."""
    return [] if systemd_here() else [path for path in _HIERARCHIES if path.is_dir()]


def systemd_here() -> bool:
    return Path("/run/systemd/system").exists()


def entering(name: str) -> list[str]:
    """The beginning of a command line that runs the rest of it in the host's own groups."""
    groups = [str(hierarchy / f"{MACHINE_PREFIX}{name}") for hierarchy in hierarchies()]
    script = (
        'while [ "$1" != -- ]; do mkdir -p "$1" && echo $$ > "$1/cgroup.procs" || exit; shift; done; shift;'
        ' exec "$@"'
    )
    return ["sh", "-c", script, "sh", *groups, "--"]


def find(name: str = "*") -> list[Path]:
    """The groups of one host, or of all."""
    return [
        group for hierarchy in _HIERARCHIES for group in sorted(hierarchy.glob(f"{MACHINE_PREFIX}{name}"))
    ]


def remove(name: str = "*", timeout: float = 5) -> None:
    """Remove the groups of hosts that have no process any more."""
    for group in find(name):
        for path in [*_below(group), group]:
            _remove(path, timeout)


def _below(group: Path) -> Iterator[Path]:
    for path in sorted(group.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)
            yield path


def _remove(path: Path, timeout: float) -> None:
    """The kernel takes a moment to forget the last process."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            path.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
