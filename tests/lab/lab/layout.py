"""Names, places and addresses of the lab; only the lab uses them, so whatever carries one is the lab's to
remove.

Workers of one test run (pytest-xdist) have a lab each, beside one another: every name and address carries the
lab's number.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

NUMBER = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")  # empty where there is but one lab
MACHINE_PREFIX = f"pvlab{NUMBER}-"
BRIDGE = f"br-pvlab{NUMBER}"
OUTER_PREFIX = f"pvl{NUMBER}-"  # this machine's end of a host's cable
INNER_PREFIX = f"pvc{NUMBER}-"  # the host's end
NAME_LIMIT = 15 - len(OUTER_PREFIX)  # Linux keeps interface names to 15 characters

RUN = Path(f"/run/pyinfra-vllm-lab{NUMBER}")  # state and lock: gone after a reboot, as the hosts are
WORK = Path(f"/var/lib/pyinfra-vllm-lab{NUMBER}")  # what the hosts write; removed with them
STATE = RUN / "state.json"
LOCK = RUN / "lock"
PROJECT = RUN / "project"  # where commands run: the checkout's files, and a lock file of the lab's own

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

    prefix: str = os.environ.get("PYINFRA_VLLM_LAB_NETWORK", f"10.213.{78 + int(NUMBER) if NUMBER else 77}")

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
