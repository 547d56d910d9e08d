"""Names, places and addresses of the lab; only the lab uses them, so whatever carries one is the lab's to remove."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

MACHINE_PREFIX = "pvlab-"
BRIDGE = "br-pvlab"
OUTER_PREFIX = "pvl-"  # this machine's end of a host's cable
INNER_PREFIX = "pvc-"  # the host's end
NAME_LIMIT = 15 - len(OUTER_PREFIX)  # Linux keeps interface names to 15 characters

RUN = Path("/run/pyinfra-vllm-lab")  # state and lock: gone after a reboot, as the hosts are
WORK = Path("/var/lib/pyinfra-vllm-lab")  # what the hosts write; removed with them
STATE = RUN / "state.json"
LOCK = RUN / "lock"

OPERATOR = "ops"  # the account that pyinfra logs in as: sudo without password, no other right
HUB_PORT = 8911


def cache() -> Path:
    """Where images, runtimes, checkpoints and the lab's key are kept between runs."""
    named = os.environ.get("PYINFRA_VLLM_LAB_CACHE")
    if named:
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "pyinfra-vllm-lab"


def recipe_key(*parts: str | bytes) -> str:
    """A short hash that changes when any ingredient of a cached thing does."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Network:
    """A private /24 on the lab's bridge: .1 is this machine, hosts count from .11."""

    prefix: str = os.environ.get("PYINFRA_VLLM_LAB_NETWORK", "10.213.77")

    @property
    def gateway(self) -> str:
        return f"{self.prefix}.1"

    @property
    def subnet(self) -> str:
        return f"{self.prefix}.0/24"

    def host(self, index: int) -> str:
        if not 0 <= index < 240:
            raise ValueError(f"the lab's network holds 240 hosts, not host number {index}")
        return f"{self.prefix}.{11 + index}"
