"""Asks one host whether it could start its services again and go back. Installs and changes nothing.

Where metrics are declared, the host writes the result beside its own.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

from pyinfra.api import Host

from pyinfra_vllm import window
from pyinfra_vllm.catalog import versions
from pyinfra_vllm.config import Declared, Service
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.facts import script
from pyinfra_vllm.facts.gpu import Gpus
from pyinfra_vllm.facts.runtime import Runtime
from pyinfra_vllm.facts.told import asked
from pyinfra_vllm.on_host.doctor import Check, Examination
from pyinfra_vllm.operations.disk import MARGIN_BYTES
from pyinfra_vllm.operations.util.remote import Remote
from pyinfra_vllm.operations.util.together import runtime_path
from pyinfra_vllm.rollout import estimate
from pyinfra_vllm.tuning import devices
from pyinfra_vllm.tuning.declared import spelled
from pyinfra_vllm.tuning.preflight import preflight
from pyinfra_vllm.tuning.standby import hindrances, told

# A switch begins only before its last start, which the control machine computes and the host's clock decides.
CLOCK_S = 10.0


def examine(host: Host, root: str, declared: Declared | None, *, deep: bool = False) -> list[Check]:
    """Every check of a host. Raises HostError where it can't be asked.

    + declared: its declaration; None: the declaration could not be read
    + deep: read every byte of checkpoints and runtimes
    """
    words, sources = script.from_input("doctor", root, str(MARGIN_BYTES), *(["--deep"] if deep else []))
    began = time.time()
    told = Remote(host).json(Examination, *words, stdin=sources)
    checks = [clock(told.now, began, time.time()), *told.checks]
    for service in declared.services if declared else ():
        checks += [_gpu(host, root, service), reachable(service, datetime.now(UTC))]
        if service.standby:
            checks.append(_standby(host, root, service))
    if declared and declared.metrics:
        checks.append(_as_metrics(host, declared.metrics, checks))
    return checks


def _as_metrics(host: Host, directory: str, checks: list[Check]) -> Check:
    """Has the host write which checks failed. Names alone: the file is for everybody to read."""
    failed = json.dumps([check.name for check in checks if not check.ok])
    words, sources = script.from_input("server.metrics", directory, failed)
    try:
        Remote(host).run(*words, stdin=sources)
    except HostError as error:
        return _check("metrics", f"the result can't be written to {directory} (`metrics`): {error}")
    return _check("metrics", "")


def clock(now: float, earliest: float, latest: float) -> Check:
    """Whether the host's clock agrees with this machine's, as far as the time of asking tells."""
    off = max(earliest - now, now - latest, 0.0)
    if off <= CLOCK_S:
        return _check("clock", "")
    which = "behind" if now < earliest else "ahead of"
    return _check(
        "clock",
        f"its clock is {off:.0f} s {which} this machine's: windows would open and close at the wrong time",
    )


def _gpu(host: Host, root: str, service: Service) -> Check:
    """The checks of a rollout's preflight: cards, driver, and other processes on them."""
    name = f"{service.name}: gpu"
    try:
        found = asked(host, Runtime, path=runtime_path(root, service))
        told = asked(host, Gpus)
    except HostError as error:
        return _check(name, str(error))
    version = found.version if found else service.runtime.version
    if told.problem or version is None:
        return _check(name, told.problem or "no vLLM is installed to ask for")
    build = versions.build(version, found.torch if found else None)
    return _check(name, "; ".join(preflight(told.gpus, service, build)))


def _standby(host: Host, root: str, service: Service) -> Check:
    """Whether flags, vLLM and cards allow it. No failure: without it a switch is a plain restart."""
    name = f"{service.name}: standby declared"
    try:
        found = asked(host, Runtime, path=runtime_path(root, service))
        cards = [card.name or "" for card in devices.chosen(service.gpus, asked(host, Gpus).gpus)]
    except HostError as error:
        return _check(name, str(error))
    version = found.version if found else service.runtime.version
    flags = {spelled(flag): value for flag, value in service.flags.items()}
    problems = hindrances(version or "0", cards, flags, service.environment)
    return Check(name, True, told("; ".join(problems)))


def reachable(service: Service, at: datetime) -> Check:
    """Whether a switch could begin in one of the next openings, early enough to end before it closes."""
    needed = estimate.estimate(service)
    now = window.state(service.window, at, needed.length)
    moments = [*([at] if now.open else []), *now.next]
    states = [window.state(service.window, moment, needed.length) for moment in moments]
    if any(
        state.last_start is None or state.last_start >= moment
        for state, moment in zip(states, moments, strict=True)
    ):
        return _check(f"{service.name}: window", "")
    why = (
        f"none of the next {len(moments)} openings is as long as a switch and its rollback may take"
        f" ({window.shown_duration(needed.length)}, {needed.source})"
    )
    return _check(f"{service.name}: window", why if moments else f"it never opens: {now.reason}")


def _check(name: str, problem: str) -> Check:
    return Check(name, not problem, problem)
