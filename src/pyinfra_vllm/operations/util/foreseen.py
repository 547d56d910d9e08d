"""Plans a run on one host with the checks of deploy.py's operations. Reads facts; changes nothing.

Shown by `pyinfra-vllm plan`; a dry run tells the same refusals while it prepares its operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from pyinfra.api import Host

from pyinfra_vllm.checkpoint import Lock
from pyinfra_vllm.config import Declared, Overrides, Service
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.facts.checkpoint import Checkpoints
from pyinfra_vllm.facts.runtime import Runtime
from pyinfra_vllm.facts.told import asked
from pyinfra_vllm.on_host.inspect.checkpoints import Stored
from pyinfra_vllm.operations import checkpoint, disk, program, runtime
from pyinfra_vllm.operations.util.planning import Refused, missing_secrets, plan
from pyinfra_vllm.operations.util.switching import hindrance, under_way
from pyinfra_vllm.operations.util.together import runtime_path
from pyinfra_vllm.release import (
    changed_environment,
    changed_flags,
    difference_of_secrets,
    named_checkpoint,
    same_but_for_values,
)
from pyinfra_vllm.rollout.opening import explain, never, opening, shut
from pyinfra_vllm.rollout.plans import DEFERRED, INSTALL, REFUSED, SWITCH, UNCHANGED, HostPlan, ServicePlan
from pyinfra_vllm.rollout.progress import Wanted


def host_plan(host: Host, declared: Declared, lock: Lock, overrides: Overrides) -> HostPlan:
    """The changes and the refusals of a run, as far as they are known before it."""
    found, problem = program.question(host, declared.root, declared.users)
    if not found:  # without python3 there is nothing more to ask
        services = tuple(ServicePlan(item.name, REFUSED) for item in declared.services)
        return HostPlan(host.name, services, (problem or "it told nothing",))
    reasons = [problem] if problem else []
    reasons += _of_disk(host, declared, lock)
    stored = {item.directory: item for item in asked(host, Checkpoints, root=declared.root)}
    services = tuple(
        _service(host, declared.root, item, lock, overrides, stored) for item in declared.services
    )
    if declared.sources.swarm:
        services = tuple(replace(item, shared=item.download_bytes > 0) for item in services)
    if reasons:
        services = tuple(_refused(item) for item in services)
    return HostPlan(host.name, services, tuple(reasons))


def _of_disk(host: Host, declared: Declared, lock: Lock) -> Iterator[str]:
    problem, _ = disk.question(host, declared, lock)
    if problem:
        yield problem


def _service(
    host: Host,
    root: str,
    service: Service,
    lock: Lock,
    overrides: Overrides,
    stored: dict[str, Stored],
) -> ServicePlan:
    locked = lock.get(service.model, service.revision)
    path = runtime_path(root, service)
    there = asked(host, Runtime, path=path)
    wrong = runtime.problem(path, service.runtime, there)
    missing = missing_secrets(service)
    try:
        wanted = plan(host, root, service, locked, dict.fromkeys(service.secrets, "") if missing else None)
    except Refused as error:
        reasons = error.problems if there is None else (*filter(None, [wrong]), *error.problems)
        return ServicePlan(service.name, REFUSED, reasons=reasons)
    except HostError as error:
        return ServicePlan(service.name, REFUSED, reasons=(str(error),))
    directory = locked.directory(root)
    left = checkpoint.missing_bytes(locked, stored.get(directory), stored.get(f"{directory}.partial"))
    # Another service of the same checkpoint downloads nothing.
    files = {file.path: [file.sha256 or file.blob_sha1 or ""] for file in locked.files}
    stored[directory] = Stored(
        directory,
        locked.name,
        locked.commit,
        "complete",
        [],
        locked.total_bytes,
        referenced_by=[],
        files=files,
    )
    installs = "" if there else f"{service.runtime.package} {service.runtime.version}"
    made = service_plan(wanted, overrides, left, installs, missing)
    return _refused(made, wrong) if wrong else made


def service_plan(
    wanted: Wanted,
    overrides: Overrides,
    download_bytes: int = 0,
    installs: str = "",
    missing: list[str] | None = None,
) -> ServicePlan:
    """The change of one service, from the answers of its host. Reads the clock for the window.

    + missing: variables that would hold its secrets, and aren't set here: then its release can't be named
    """
    old, new, observed = wanted.observed.release, wanted.release, wanted.observed
    name = None if missing else new.id
    serves = observed.runs(observed.current)
    if wanted.runs or (missing and old and same_but_for_values(old, new) and serves):
        return ServicePlan(wanted.service.name, UNCHANGED, observed.current, observed.current)
    found = opening(wanted.service, overrides, observed.history)
    action = INSTALL if old is None else SWITCH
    if shut(found) and not under_way(observed, new.id):
        action = DEFERRED
    made = ServicePlan(
        service=wanted.service.name,
        action=action,
        old=observed.current,
        new=name,
        flags=changed_flags(old["argv"] if old else (), new.argv),
        environment=changed_environment(old.get("environment", {}), new.environment) if old else {},
        secrets=() if missing else tuple(difference_of_secrets(old, new)),
        model=(named_checkpoint(old["checkpoint"]) if old else None, named_checkpoint(new.checkpoint)),
        runtime=(old.get("runtime", {}).get("version", "unknown") if old else None, new.runtime["version"]),
        download_bytes=download_bytes,
        installs=installs,
        window=explain(wanted.service, overrides, observed.history),
        memory=new.fit,
        standby=wanted.standby,
        warnings=(*wanted.warnings, *_unnamed(missing)),
    )
    criteria = wanted.service.gate.criteria().as_dict()
    if under_way(observed, new.id):
        return made
    hindered = hindrance(observed, new.id, criteria, retry=overrides.retry_rejected)
    reason = (
        hindered[1] if hindered else never(wanted.service, overrides, datetime.now(UTC), observed.history)
    )
    return _refused(made, reason) if reason else made


def _unnamed(missing: list[str] | None) -> list[str]:
    if not missing:
        return []
    return [f"its release can't be named here: {', '.join(missing)} not set in this environment"]


def _refused(made: ServicePlan, reason: str = "") -> ServicePlan:
    reasons = (*made.reasons, reason) if reason else made.reasons
    return ServicePlan(**{**vars(made), "action": REFUSED, "reasons": reasons})
