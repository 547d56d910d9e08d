"""Stages a release: its unit, command line and environment in a directory of their own. Nothing running is touched."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, Host, State, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.facts.files import Sha256File

from pyinfra_vllm.checkpoint import Checkpoint
from pyinfra_vllm.config import Service
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.operations._planning import plan
from pyinfra_vllm.operations._refuse import refuse
from pyinfra_vllm.operations._remote import Remote
from pyinfra_vllm.operations._rollout import PROGRESS
from pyinfra_vllm.release import Release, environment_file


@operation()
def staged(root: str, service: Service, checkpoint: Checkpoint) -> Generator[PyinfraCommand, None, None]:
    """
    Stage the release that was declared, and the service's secrets, so that a switch can begin at any time.

    + root: where pyinfra-vllm keeps its files on the host
    + service: what was declared
    + checkpoint: its entry in the lock

    **Example:**

    .. code:: python

        release.staged(name="chat: stage the release", root=mine.root, service=chat, checkpoint=locked)
    """
    try:
        wanted = plan(host, root, service, checkpoint)
    except HostError as error:
        yield refuse(str(error))
        return
    PROGRESS.want(wanted)
    secrets = secrets_file(service)
    stale_secrets = secrets is not None and _digest(secrets) != host.get_fact(
        Sha256File, path=f"{root}/{service.name}/secrets.env"
    )
    if wanted.release.id in wanted.observed["staged"] and not stale_secrets:
        host.noop(f"{service.name}: release {wanted.release.id} is staged")
        return
    yield FunctionCommand(stage, (root, wanted.release, secrets if stale_secrets else None), {})


def secrets_file(service: Service) -> str | None:
    """The text of the service's EnvironmentFile= for secrets; None where it has none."""
    if not service.secrets:
        return None
    return environment_file({name: os.environ[variable] for name, variable in service.secrets.items()})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def stage(state: State, host: Host, root: str, release: Release, secrets: str | None) -> bool:
    """Runs on the control machine when the operation is executed; the host lays the files down whole."""
    remote = Remote(host)
    payload = f"{release.directory}/.payload-{release.id}.json"
    content = {"id": release.id, "user": release.user, "files": release.files()}
    try:
        remote.run("mkdir", "-p", "-m", "755", release.directory)
        if secrets is not None:
            remote.write(f"{release.directory}/secrets.env", secrets)
        remote.write(payload, json.dumps(content))
        remote.run("python3", f"{root}/bin/on-host.pyz", "--root", root, "stage", release.service, payload)
    except (HostError, OSError, EOFError) as error:
        logger.error(f"{host.print_prefix}release {release.id} of {release.service} was not staged: {error}")
        return False
    return True
