"""Brings a checkpoint onto a host: downloaded there in the background, verified, complete or absent."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from typing import Any

from pyinfra import host, logger, state
from pyinfra.api import FunctionCommand, Host, State, operation
from pyinfra.api.command import PyinfraCommand

from pyinfra_vllm.checkpoint import Checkpoint, File
from pyinfra_vllm.config import Service
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.facts.checkpoint import Checkpoints
from pyinfra_vllm.facts.told import asked
from pyinfra_vllm.hub_endpoint import endpoint, token
from pyinfra_vllm.on_host.inspect.checkpoints import Stored
from pyinfra_vllm.operations.util.refuse import alone
from pyinfra_vllm.operations.util.together import runtime_path
from pyinfra_vllm.operations.util.unit import Unit
from pyinfra_vllm.printable import printable
from pyinfra_vllm.text import in_units

# Host and key of what this run has completed in another way (share.py): such a host gets no token of the Hub.
COMPLETED: set[tuple[str, str]] = set()


@operation()
@alone
def present(
    root: str, service: Service, checkpoint: Checkpoint, verify: bool = False, shared: str | None = None
) -> Generator[PyinfraCommand, None, None]:
    """
    Have a checkpoint whole on the host, as the lock states it. Only files that are not are fetched.

    + root: where pyinfra-vllm keeps its files on the host
    + service: its declaration; its runtime's own Hub client downloads
    + checkpoint: its entry in the lock
    + verify: read every byte of a checkpoint that looks complete
    + shared: a folder of checkpoints that the host can read, asked before the Hub

    **Example:**

    .. code:: python

        checkpoint.present(name="chat: download", root=mine.root, service=chat, checkpoint=locked)
    """
    found = {item.directory: item for item in asked(host, Checkpoints, root=root)}
    directory = checkpoint.directory(root)
    here = found.get(directory)
    if finished(checkpoint, here) and not verify:
        host.noop(f"{checkpoint.repo} at {checkpoint.commit[:12]} is complete")
        return
    if not state.is_executing:
        logger.info(
            f"{host.print_prefix}{service.name}:"
            f" {_preview(checkpoint, here, found.get(directory + '.partial'), shared)}"
        )
    asks = {**request(root, runtime_path(root, service), checkpoint), "verify": verify}
    if shared:
        asks["shared"] = shared
    yield FunctionCommand(fetch, (root, asks), {})


def _preview(
    checkpoint: Checkpoint,
    here: Stored | None,
    partial: Stored | None,
    shared: str | None = None,
) -> str:
    """A dry run's line about this checkpoint."""
    name = f"{checkpoint.repo} at {checkpoint.commit[:12]}"
    if finished(checkpoint, here):
        return f"would read all {in_units(checkpoint.total_bytes)} of {name} to verify them"
    if here is not None and here.state == "damaged":
        return f"would replace what is damaged of {name}: {'; '.join(here.problems)}"
    if here is not None and here.state == "complete":
        most = in_units(missing_bytes(checkpoint, here, partial))
        return (
            f"would read {_paths(unlike(checkpoint, here))} of {name}, not verified here to be what the lock"
            f" states, and download what differs, up to {most}"
        )
    if here is not None:
        return f"would verify {name}, which was not finished, and download what is missing"
    left = missing_bytes(checkpoint, here, partial)
    first = f"copy it from {shared} or " if shared else ""
    size = f"{in_units(left)} of {in_units(checkpoint.total_bytes)}"
    return f"would {first}download {size} of {name} from {endpoint()}"


def missing_bytes(checkpoint: Checkpoint, here: Stored | None, partial: Stored | None) -> int:
    """The bytes that are missing on the host, or that may differ from the lock.

    + here, partial: the host's files at the checkpoint's directory and beside it
    """
    needed = sum(file.size for file in unlike(checkpoint, here) if not _only_to_be_read(file, here))
    return max(0, needed - (partial.bytes if partial else 0))


def finished(checkpoint: Checkpoint, here: Stored | None) -> bool:
    """Whether the host has all of the checkpoint, with the content that the lock states."""
    return here is not None and here.state == "complete" and not unlike(checkpoint, here)


def unlike(checkpoint: Checkpoint, here: Stored | None) -> list[File]:
    """The files that the host has not shown to have with the content that the lock states."""
    known = here.files if here else {}
    return [
        file for file in checkpoint.files if (file.sha256 or file.blob_sha1) not in known.get(file.path, ())
    ]


def _only_to_be_read(file: File, here: Stored | None) -> bool:
    """Whether version 0.1, which recorded sha256 alone, verified it, and it is unchanged since."""
    return here is not None and file.sha256 is None and len(here.files.get(file.path, ())) == 1


def _paths(files: list[File]) -> str:
    named = ", ".join(file.path for file in files[:3])
    return named if len(files) <= 3 else f"{named} and {len(files) - 3} more files"


def key(directory: str) -> str:
    """Names the unit that fetches into a directory: readable, and one for each directory."""
    repository = directory.split("/")[-2].rsplit("--", 1)[-1]
    return f"{repository[:60]}-{hashlib.sha256(directory.encode()).hexdigest()[:12]}"


def request(root: str, runtime: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """The request to the host to have a checkpoint. It holds no secret."""
    return {
        "root": root,
        "key": key(checkpoint.directory(root)),
        "repo": checkpoint.repo,
        "commit": checkpoint.commit,
        "endpoint": endpoint(),
        "python": f"{runtime}/bin/python",
        "files": [_file(file) for file in checkpoint.files],
    }


def _file(file: File) -> dict[str, object]:
    content = {"sha256": file.sha256} if file.sha256 else {"blob_sha1": file.blob_sha1}
    return {"path": file.path, "size": file.size, **content}


def fetch(state: State, host: Host, root: str, asks: Mapping[str, Any]) -> bool:
    """Runs on the control machine in the execution; the host downloads and verifies by itself."""
    if (host.name, asks["key"]) in COMPLETED and not asks.get("verify"):
        return True
    what = f"{asks['repo']} at {asks['commit'][:12]}"
    hub_token = token()
    secret = {"hub_token": hub_token} if hub_token else {}
    unit = Unit(host, f"fetch-{asks['key']}", f"download {what}")
    try:
        unit.run(root, "fetch", asks, **secret)
    except HostError as error:
        logger.error(f"{host.print_prefix}{what} is not here: {printable(error)}")
        return False
    for note in unit.told.get("notes", []):
        logger.warning(f"{host.print_prefix}{what}: {printable(note)}")
    logger.info(f"{host.print_prefix}{what} is complete and verified")
    return True
