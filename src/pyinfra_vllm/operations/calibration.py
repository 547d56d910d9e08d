"""Has a host calibrate one service, and follows it as a switch is followed: started here, finished by the host alone."""

from __future__ import annotations

from pyinfra.api import Host

from pyinfra_vllm.asking import fact
from pyinfra_vllm.config import Overrides, Service
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.facts.record import Running
from pyinfra_vllm.on_host.order import CALIBRATION, Order
from pyinfra_vllm.operations._opening import explain, opening
from pyinfra_vllm.operations._rollout import DEFERRED, Outcome
from pyinfra_vllm.operations._switching import Switching
from pyinfra_vllm.operations.switch import with_prompts


def calibrate(host: Host, root: str, service: Service, overrides: Overrides, runs: int) -> Outcome:
    """Measure what the service runs now `runs` times, with a restart before each but the first.

    Its gate's own settings say how, so that the noise is that of what the gate measures. Raises HostError.
    """
    found = opening(service, overrides)
    current = {item["service"]: item["current"] for item in fact(host, Running, root=root)}.get(service.name)
    if current is None:
        raise HostError(f"{service.name} has no release here yet: roll it out first. Nothing was touched.")
    criteria, prompts = with_prompts(service.gate.criteria(), f"{root}/{service.name}/prompts.jsonl")
    order = Order(
        service=service.name,
        release=current,
        operator=overrides.operator or "",
        purpose=CALIBRATION,
        reason=overrides.reason or "",
        last_start=found.last_start.timestamp() if found and found.last_start else None,
        overrides=overrides.used,
        criteria=criteria.as_dict(),
        ready_timeout_s=service.ready_timeout_s,
        runs=runs,
    )
    switching = Switching(host, root, order, prompts)
    if found and not found.open:
        return switching.outcome(DEFERRED, f"nothing was restarted; {explain(service, overrides)}")
    return switching.run()
