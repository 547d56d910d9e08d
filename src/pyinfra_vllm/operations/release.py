"""Stages a release in a directory of its own, and asks its vLLM whether it accepts it.

Nothing running is touched.
"""

from __future__ import annotations

import json
from collections.abc import Generator

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, Host, State, operation
from pyinfra.api.command import PyinfraCommand

from pyinfra_vllm.checkpoint import Checkpoint
from pyinfra_vllm.config import Service
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.on_host.state.paths import TRANSIENT_UNITS
from pyinfra_vllm.operations.util.planning import planned
from pyinfra_vllm.operations.util.refuse import alone, refuse
from pyinfra_vllm.operations.util.remote import LOST, Remote, program
from pyinfra_vllm.operations.util.unit import RUN_DIRECTORY, Unit
from pyinfra_vllm.printable import printable
from pyinfra_vllm.release import Release
from pyinfra_vllm.rollout.progress import PROGRESS
from pyinfra_vllm.text import sentence


@operation()
@alone
def staged(root: str, service: Service, checkpoint: Checkpoint) -> Generator[PyinfraCommand, None, None]:
    """
    Stage the release that was declared, so that a switch can begin at any time.

    + root: where pyinfra-vllm keeps its files on the host
    + service: its declaration
    + checkpoint: its entry in the lock

    **Example:**

    .. code:: python

        release.staged(name="chat: stage the release", root=mine.root, service=chat, checkpoint=locked)
    """
    try:
        wanted = planned(host, root, service, checkpoint)
    except HostError as error:
        yield refuse(str(error))
        return
    PROGRESS.want(wanted)
    if wanted.release.id in wanted.observed.staged:
        host.noop(f"{service.name}: release {wanted.release.id} is staged")
        return
    yield FunctionCommand(stage, (root, wanted.release), {})


def stage(state: State, host: Host, root: str, release: Release) -> bool:
    """Runs on the control machine when the operation is executed; the host lays the files down whole."""
    remote = Remote(host)
    # In memory, as it may hold secrets: until the host has put each file where only its readers can read it.
    payload = f"{RUN_DIRECTORY}/stage-{release.service}-{release.id}.json"
    content = {"id": release.id, "user": release.user, "files": release.files()}
    try:
        remote.run("mkdir", "-p", "-m", "755", release.directory)
        remote.run("install", "-d", "-m", "700", RUN_DIRECTORY)
        remote.write(payload, json.dumps(content))
        remote.run(*program(root), "stage", release.service, payload)
    except LOST as error:
        logger.error(
            f"{host.print_prefix}release {release.id} of {release.service} was not staged: {printable(error)}"
        )
        return False
    return True


@operation()
@alone
def rehearsed(service: Service) -> Generator[PyinfraCommand, None, None]:
    """
    Ask the vLLM that will serve whether it accepts the staged release. No GPU memory is taken.

    It parses the command line, builds the engine's configuration from the checkpoint and loads the tokenizer.
    A host whose vLLM refuses fails here, with vLLM's own reason, and goes on serving.

    + service: its declaration

    **Example:**

    .. code:: python

        release.rehearsed(name="chat: ask vLLM whether it accepts the release", service=chat)
    """
    wanted = PROGRESS.wanted.get((host.name, service.name))
    if wanted is None:  # only in a dry run: staging was refused, which was said there
        host.noop(f"{service.name}: no release was staged")
    elif wanted.runs or wanted.release.id in wanted.observed.rehearsed:
        host.noop(f"{service.name}: nothing to ask about release {wanted.release.id}")
    else:
        yield FunctionCommand(rehearse, (wanted.root, wanted.release), {})


def rehearse(state: State, host: Host, root: str, release: Release) -> bool:
    """Runs on the control machine when the operation is executed; the host asks by itself."""
    try:
        said = asked_of_vllm(host, root, release)
    except HostError as error:
        logger.error(
            f"{host.print_prefix}{release.service}: {sentence(printable(error))} What serves was not touched."
            " Correct the declaration, and run again"
        )
        return False
    logger.info(f"{host.print_prefix}{release.service}: {printable(said)}")
    return True


def asked_of_vllm(host: Host, root: str, release: Release) -> str:
    """The answer of the release's own vLLM, which takes no GPU memory for it.

    Raises HostError where it refuses.
    """
    unit = Unit(host, f"rehearse-{release.service}", "ask vLLM whether it accepts the release")
    request = {"root": root, "service": release.service, "release": release.id}
    return unit.run(root, "rehearse", request, str(TRANSIENT_UNITS))
