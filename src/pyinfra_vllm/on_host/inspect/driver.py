"""The NVIDIA driver of this host in its two halves: the kernel module and the user-space libraries.

Reads only. An update replaces the libraries under a running server, which goes on; the next start gets no GPU
until the host is booted.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from . import nvidia

LOADED = Path("/proc/driver/nvidia/version")
# "NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build"; older ones without "for x86_64"
_MODULE = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)")
MODINFO_S = 10


def loaded(path: Path = LOADED) -> str | None:
    """The version of the module that the kernel has; None where it has none."""
    try:
        found = _MODULE.search(path.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None
    return found[1] if found else "of an unknown version"


def on_disk() -> str | None:
    """The version of the module that this kernel would load at the next boot; None where that is unknown."""
    if shutil.which("modinfo") is None:
        return None
    try:
        done = subprocess.run(
            ["modinfo", "-F", "version", "nvidia"],
            capture_output=True,
            text=True,
            timeout=MODINFO_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def libraries() -> str | None:
    """The version of the libraries; None where there is no nvidia-smi. Raises nvidia.NoAnswer."""
    if not nvidia.there():
        return None
    lines = nvidia.ask("--query-gpu=driver_version", "--format=csv,noheader").split()
    return lines[0] if lines else None


def problem() -> str:
    """Why a server started now, or after a boot, would get no GPU; empty where nothing speaks against it."""
    kernel = loaded()
    try:
        user = libraries()
    except nvidia.NoAnswer as error:
        has = f"the kernel has module {kernel}" if kernel else "the kernel has no NVIDIA module"
        return (
            f"nvidia-smi fails, and so would a server that is started now: {error} ({has})."
            " Boot the host, or repair the driver"
        )
    if kernel and user is None:
        return (
            f"the kernel has the NVIDIA module {kernel}, and nvidia-smi is not there:"
            " install the driver's programs again"
        )
    if kernel and user != kernel:
        return (
            f"the kernel has the NVIDIA module {kernel}, the libraries are {user}:"
            " a server that is started now gets no GPU. Boot the host"
        )
    later = on_disk() if user else None
    if later and later != user:
        return (
            f"the next boot would load the NVIDIA module {later}, the libraries are {user}:"
            " install the two of one version"
        )
    return ""
