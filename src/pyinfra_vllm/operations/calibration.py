"""Starts the calibration of one service on a host, and follows it as a switch is followed."""

from __future__ import annotations

from pyinfra.api import Host

from pyinfra_vllm.asking import fact
from pyinfra_vllm.config import Overrides, Service
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.facts.record import Running
from pyinfra_vllm.operations.util.switching import Switching
from pyinfra_vllm.rollout import orders
from pyinfra_vllm.rollout.progress import Outcome


def calibrate(host: Host, root: str, service: Service, overrides: Overrides, runs: int) -> Outcome:
    """Measure the current release `runs` times, with a restart before each run but the first.

    It is measured with the settings of the service's gate. Raises HostError.
    """
    current = {item.service: item.current for item in fact(host, Running, root=root)}.get(service.name)
    if current is None:
        raise HostError(f"{service.name} has no release here yet: roll it out first. Nothing was touched.")
    prepared = orders.calibration(root, service, current, overrides, runs)
    return Switching(host, root, prepared).run()
