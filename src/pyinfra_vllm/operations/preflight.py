"""Checks, before anything is staged, whether a host can serve its declaration."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra import host, logger
from pyinfra.api import operation
from pyinfra.api.command import PyinfraCommand

from pyinfra_vllm.checkpoint import Checkpoint
from pyinfra_vllm.config import Service
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.operations.util.planning import planned
from pyinfra_vllm.operations.util.refuse import alone, refuse


@operation()
@alone
def passed(root: str, service: Service, checkpoint: Checkpoint) -> Generator[PyinfraCommand, None, None]:
    """
    Stop this host where its GPUs, driver or vLLM can't serve the declaration; changes nothing.

    + root: where pyinfra-vllm keeps its files on the host
    + service: its declaration
    + checkpoint: its entry in the lock

    **Example:**

    .. code:: python

        preflight.passed(name="chat: preflight", root=mine.root, service=chat, checkpoint=locked)
    """
    try:
        wanted = planned(host, root, service, checkpoint)
    except HostError as error:
        yield refuse(str(error))
        return
    for warning in wanted.warnings:
        logger.warning(f"{host.print_prefix}{service.name}: {warning}")
    host.noop(f"{service.name} can be served on {wanted.gpu}")
