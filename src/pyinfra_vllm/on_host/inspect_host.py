"""What a host has of us, as JSON: read-only, one file, standard library only, so that a fact can send it.

Usage: inspect_host.py ROOT [USER ...]
"""

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


if __name__ == "__main__":
    json.dump(inspect(Path(sys.argv[1]), sys.argv[2:]), sys.stdout)
