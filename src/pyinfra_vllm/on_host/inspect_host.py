"""What a host has of us: the program, the recovery unit, users. Read-only; a fact sends it."""

from __future__ import annotations

import hashlib
import json
import platform
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

RECOVERY_UNIT = Path("/etc/systemd/system/pyinfra-vllm-recover.service")


def digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def known(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def systemd() -> int | None:
    """The version of the systemd that this host was booted with; None where it was not."""
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemd-run") is None:
        return None
    told = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=True).stdout
    return int(told.split()[1].partition(".")[0])


def inspect(root: Path, users: list[str]) -> dict[str, Any]:
    link = root / "bin" / "on-host.pyz"
    wants = RECOVERY_UNIT.parent / "multi-user.target.wants" / RECOVERY_UNIT.name
    return {
        "python": list(sys.version_info[:3]),
        "platform": platform.machine(),
        "systemd": systemd(),
        "program": str(link.readlink()) if link.is_symlink() and link.exists() else None,
        "recovery_unit": digest(RECOVERY_UNIT) if wants.is_symlink() else None,
        "users": {user: known(user) for user in users},
    }


def main(argv: list[str]) -> int:
    """Prints one JSON object: ROOT [USER ...]"""
    json.dump(inspect(Path(argv[0]), argv[1:]), sys.stdout)
    return 0
