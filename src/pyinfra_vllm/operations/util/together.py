"""All that a run wants to know of a host, asked by one command.

It loads little: hosts are asked before the operations are imported, which is done while they answer.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

import gevent
from pyinfra.api import Host

from pyinfra_vllm.config import Declared, Service
from pyinfra_vllm.facts import told
from pyinfra_vllm.facts.checkpoint import Checkpoints
from pyinfra_vllm.facts.disk import Filesystem
from pyinfra_vllm.facts.gpu import Gpus
from pyinfra_vllm.facts.runtime import Runtime
from pyinfra_vllm.facts.service import Host as HostFact
from pyinfra_vllm.facts.service import Service as ServiceFact
from pyinfra_vllm.operations.util.archive import program_name

SENT_S = 0.02  # for the questions to be on their way to the hosts


def runtime_path(root: str, service: Service) -> str:
    """Path of the service's vLLM: the operator's own venv, or ours for that version."""
    return service.runtime.path or f"{root}/runtimes/{service.runtime.version}"


def ask_together(host: Host, declared: Declared) -> None:
    """Ask a host by one command for all that a run wants to know of it, however many services it has."""
    _load_meanwhile()
    root, services = declared.root, declared.services
    told.ask_together(
        host,
        [
            (HostFact, {"root": root, "users": tuple(declared.users)}),
            (Gpus, {}),
            (Checkpoints, {"root": root}),
            (Filesystem, {"path": root}),
            *((Runtime, {"path": runtime_path(root, service)}) for service in services),
            *((ServiceFact, {"root": root, "service": service.name}) for service in services),
        ],
        installed=(root, program_name()),
    )


@cache
def _load_meanwhile() -> None:
    """Load what is done with the answers while the hosts look for them: 0.07 s."""
    for name in ("preflight", "switch"):
        gevent.spawn_later(SENT_S, import_module, f"pyinfra_vllm.operations.{name}")
