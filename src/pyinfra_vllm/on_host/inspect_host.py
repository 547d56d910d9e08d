"""What a host has of us: the program, the recovery unit, users. Read-only; a fact sends it."""

from __future__ import annotations

import hashlib
import json
import platform
import pwd
import shutil
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


def inspect(root: Path, users: list[str]) -> dict[str, Any]:
    link = root / "bin" / "on-host.pyz"
    wants = RECOVERY_UNIT.parent / "multi-user.target.wants" / RECOVERY_UNIT.name
    return {
        "python": list(sys.version_info[:3]),
        "platform": platform.machine(),
        "systemd": Path("/run/systemd/system").is_dir() and shutil.which("systemd-run") is not None,
        "program": str(link.readlink()) if link.is_symlink() and link.exists() else None,
        "recovery_unit": digest(RECOVERY_UNIT) if wants.is_symlink() else None,
        "users": {user: known(user) for user in users},
    }


def main(argv: list[str]) -> int:
    """Prints one JSON object: ROOT [USER ...]"""
    json.dump(inspect(Path(argv[0]), argv[1:]), sys.stdout)
    return 0
