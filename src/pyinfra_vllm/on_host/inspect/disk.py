"""Measures the free space of the file system under a path. Reads only; the path itself need not exist yet."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

MOUNTS = "/proc/self/mountinfo"
# Stays free: releases, evidence and logs; vLLM's compile cache of a model was under 300 MiB.
MARGIN_BYTES = 512 * 1024**2


@dataclass(frozen=True)
class Filesystem:
    """The file system of a path. Sizes in bytes, as an ordinary process may use them.

    free_inodes: None where there is no fixed number of them (btrfs says 0 of 0)
    """

    path: str
    mount: str
    device: str
    type: str
    free_bytes: int
    total_bytes: int
    free_inodes: int | None
    read_only: bool


def filesystem(path: str) -> Filesystem:
    """The file system that a file at `path` would be written to."""
    folder = Path(path).resolve()
    while not folder.is_dir():
        folder = folder.parent
    parent = str(folder)
    numbers = os.statvfs(parent)
    mount, device, kind = mounted_at(parent)
    return Filesystem(
        path=parent,
        mount=mount,
        device=device,
        type=kind,
        free_bytes=numbers.f_bavail * numbers.f_frsize,
        total_bytes=numbers.f_blocks * numbers.f_frsize,
        free_inodes=numbers.f_favail if numbers.f_files else None,
        read_only=bool(numbers.f_flag & os.ST_RDONLY),
    )


def mounted_at(path: str, mounts: str = MOUNTS) -> tuple[str, str, str]:
    """Mount point, device and type of the innermost mount that holds `path` (proc(5), mountinfo)."""
    best = ("/", "?", "?")
    with Path(mounts).open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            before, _, after = line.rstrip("\n").partition(" - ")
            mount = _plain(before.split(" ")[4])
            inside = path == mount or path.startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(best[0]):
                kind, device = after.split(" ")[:2]
                best = (mount, _plain(device), kind)
    return best


def _plain(word: str) -> str:
    """Undo the kernel's octal escapes of blanks and the like."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), word)


def main(argv: list[str]) -> int:
    json.dump(asdict(filesystem(argv[0])), sys.stdout)
    return 0
