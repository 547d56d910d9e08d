"""Questions to one host for status, history and report. Reads; decides nothing and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyinfra_vllm.facts.told import asked

from ..answers import ToldService
from ..asking import Host, fact
from ..checkpoint import LOCK_FILE, Lock
from ..config import Fleet, Service
from ..errors import RolloutError
from ..facts.gpu import Gpus
from ..facts.record import Record, Running
from ..inventory import root_of
from ..on_host.inspect.gpus import Gpu
from ..on_host.state.observed import Observed
from ..release import same_but_for_values

if TYPE_CHECKING:
    from pyinfra_vllm.rollout.progress import Wanted

# About a month of nightly switches for history; status needs the newest only.
NEWEST = 50
MAX_EVIDENCE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Wish:
    """The declaration of one service of a host: the id of its release, or why that is not known."""

    service: str
    model: str = ""
    release: str | None = None
    problem: str = ""
    gpu: str = ""


@dataclass(frozen=True)
class Look:
    """The answer of one host: its services, and their switches by service.

    gpus: () where nobody asked or nvidia-smi gave no answer
    """

    running: list[Observed]
    record: dict[str, ToldService]
    wishes: tuple[Wish, ...] | None = field(default=None)  # None: the declaration could not be read
    gpus: tuple[Gpu, ...] = ()

    def observed(self, service: str) -> Observed | None:
        """The state of one service; None where the host has none of that name."""
        return next((item for item in self.running if item.service == service), None)


Question = Callable[[Host], Look]


def at_status(fleet: Fleet | None) -> Question:
    """The running release, its kernel as found in the log, and the declaration."""

    def question(host: Host) -> Look:
        told = _record(host, newest=1, max_bytes=0)
        return Look(fact(host, Running, root=root_of(host)), told, _wishes(host, fleet))

    return question


def at_history(newest: int = NEWEST) -> Question:
    """So many switches of each service (0: all), without evidence."""
    return lambda host: Look([], _record(host, newest, max_bytes=0))


def at_report(fleet: Fleet | None, newest: int) -> Question:
    """The running release, the switches of each service with their evidence, and the GPUs."""

    def question(host: Host) -> Look:
        told = _record(host, newest, MAX_EVIDENCE_BYTES)
        gpus = asked(host, Gpus, _ignore_errors=True).gpus
        return Look(fact(host, Running, root=root_of(host)), told, _wishes(host, fleet), gpus)

    return question


def _record(host: Host, newest: int, max_bytes: int) -> dict[str, ToldService]:
    told = fact(host, Record, root=root_of(host), newest=newest, max_bytes=max_bytes)
    return {service["service"]: service for service in told}


def _wishes(host: Host, fleet: Fleet | None) -> tuple[Wish, ...] | None:
    """The release that each declared service should run, planned from facts as deploy.py plans it."""
    declared = fleet.hosts.get(host.name) if fleet else None
    if declared is None:
        return None
    return tuple(_wish(host, declared.root, service) for service in declared.services)


def _wish(host: Host, root: str, service: Service) -> Wish:
    from pyinfra_vllm.operations.util.planning import missing_secrets, plan  # imported for planning only

    missing = missing_secrets(service)
    try:
        checkpoint = Lock.load(LOCK_FILE).get(service.model, service.revision)
        wanted = plan(
            host, root, service, checkpoint, dict.fromkeys(service.secrets, "") if missing else None
        )
    except RolloutError as error:
        return Wish(service.name, service.model, problem=str(error))
    if missing:
        return _wish_without_values(wanted, missing)
    return Wish(service.name, service.model, wanted.release.id, gpu=wanted.gpu)


def _wish_without_values(wanted: Wanted, missing: list[str]) -> Wish:
    """The wish of a service whose secrets are not set here: agreement in all but their values counts."""
    service, current = wanted.service, wanted.observed.release
    if current and same_but_for_values(current, wanted.release):
        return Wish(service.name, service.model, current["id"], gpu=wanted.gpu)
    problem = f"it depends on {', '.join(missing)}, not set in the environment here"
    return Wish(service.name, service.model, problem=problem, gpu=wanted.gpu)
