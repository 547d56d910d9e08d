"""Inspects what is installed on a host: program, recovery unit, users. Read-only; a fact sends it."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from . import programs

UNITS = Path("/etc/systemd/system")
RECOVERY_UNITS = (
    "pyinfra-vllm-recover.service",
    "pyinfra-vllm-recover@.service",
    "pyinfra-vllm-recover-due.service",
    "pyinfra-vllm-recover-due.timer",
)
ENABLED = (
    "multi-user.target.wants/pyinfra-vllm-recover.service",
    "timers.target.wants/pyinfra-vllm-recover-due.timer",
)


@dataclass(frozen=True)
class Installation:
    """The installation on a host.

    systemd: the version it was booted with; None where it was not
    loose: see `loose`
    program: the name of the program; None without one
    recovery_units: see the function of that name
    machine: see `machine`
    users: whether each of those asked for is there
    """

    python: list[int]
    platform: str
    systemd: int | None
    loose: str | None
    program: str | None
    recovery_units: str | None
    machine: str
    users: dict[str, bool]


def recovery_units(units: Path = UNITS) -> str | None:
    """The texts of the recovery's units, joined; None where one is missing or not enabled."""
    try:
        text = b"".join((units / name).read_bytes() for name in RECOVERY_UNITS)
    except OSError:
        return None
    return text.decode(errors="replace") if all((units / link).is_symlink() for link in ENABLED) else None


def machine() -> str:
    """An identifier of this machine: two names of an inventory that lead to one machine have the same.

    Cloned machines share a machine id, containers of one machine its boot id; no two of them share all three.
    """
    texts = [Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id")]
    try:
        parts = [path.read_text(encoding="ascii").strip() for path in texts]
        return " ".join([*parts, str(Path("/proc/self/ns/pid").readlink())])
    except (OSError, UnicodeDecodeError):
        return ""


def known(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def loose(root: Path) -> str | None:
    """The first folder on the way to the root in which others than root could replace anything."""
    for folder in (*reversed(root.parents), root, *reversed(root.resolve().parents), root.resolve()):
        try:
            found = folder.stat()
        except FileNotFoundError:
            continue
        of_a_group = found.st_mode & 0o020 and found.st_gid != 0
        if found.st_uid != 0 or found.st_mode & 0o002 or of_a_group:
            return str(folder)
    return None


def systemd() -> int | None:
    """The version of the systemd that this host was booted with; None where it was not."""
    if not Path("/run/systemd/system").is_dir() or not programs.there("systemd-run"):
        return None
    told = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=True).stdout
    return int(told.split()[1].partition(".")[0])


def inspect(root: Path, users: list[str]) -> Installation:
    link = root / "bin" / "on-host.pyz"
    return Installation(
        python=list(sys.version_info[:3]),
        platform=os.uname().machine,
        systemd=systemd(),
        loose=loose(root),
        program=str(link.readlink()) if link.is_symlink() and link.exists() else None,
        recovery_units=recovery_units(),
        machine=machine(),
        users={user: known(user) for user in users},
    )


def main(argv: list[str]) -> int:
    """Prints one JSON object. The arguments are ROOT [USER ...]."""
    json.dump(asdict(inspect(Path(argv[0]), argv[1:])), sys.stdout)
    return 0
