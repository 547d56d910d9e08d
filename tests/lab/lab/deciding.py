"""A rollout that was measured beside other work: server, probe and whatever else runs share this machine's
few cores.

Where that leaves a verdict open, the product goes back and rejects nothing, so that the same command may be
given again. That is what is done here; what a verdict must be is left to whoever asked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

from .machine import Host
from .shell import say

TRIES = 3
PAUSE_S = 10

Done = TypeVar("Done")


def last(host: Host, service: str = "tiny") -> dict[str, Any]:
    """How the host's newest switch ended; empty where there was none."""
    program = "/srv/pyinfra-vllm/bin/on-host.pyz"
    text = host.ssh(f"test ! -e {program} || python3 {program} status {service}").stdout
    return dict(json.loads(text)[0]["last"] or {}) if text else {}


def until_decided(rollout: Callable[[], Done], host: Host) -> Done:
    """The rollout's result when it came to a verdict, or that of its last try."""
    for _ in range(TRIES - 1):
        before = last(host).get("tx")
        done = rollout()
        ended = last(host)
        if ended.get("tx") == before or ended.get("verdict") != "inconclusive":
            return done
        say(f"the verdict was left open, this machine is busy: {ended['reason']}")
        say(f"once more in {PAUSE_S} s")
        time.sleep(PAUSE_S)
    return rollout()
