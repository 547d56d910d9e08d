"""How much GPU memory is used now, as nvidia-smi says. Knows no limits and judges nothing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

TIMEOUT_S = 30


def used_mib(indexes: Sequence[int] | None = None) -> int | None:
    """MiB in use on the fullest of the GPUs (all of them without indexes); None where the host has no nvidia-smi
    or it gives no answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    if indexes is not None:
        command.append("--id=" + ",".join(str(index) for index in indexes))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    used = [int(line) for line in done.stdout.split() if line.strip().isdigit()]
    return max(used) if used and done.returncode == 0 else None
