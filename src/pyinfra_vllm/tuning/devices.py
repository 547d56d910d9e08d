"""Which of a host's GPUs a service means, and how its vLLM is told. Pure: judges facts, asks nothing."""

from __future__ import annotations

from collections.abc import Sequence

from pyinfra_vllm.catalog import gpus, versions
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.on_host.inspect.gpus import Gpu as HostGpu

# The first vLLM that takes a UUID in CUDA_VISIBLE_DEVICES; older ones end with `invalid literal for int()`
# (platforms/cuda.py device_control_id_to_physical_device_id, 0.23.0 and 0.24.0; vLLM issues 13815 and 41848).
UUIDS_FROM = "0.24"

MOST_UNLIKE = 1.5  # times the memory bandwidth of the slowest card of a service

Name = int | str


def chosen(declared: Sequence[Name] | None, rows: Sequence[HostGpu]) -> list[HostGpu]:
    """The GPUs of a service, in the order in which it names them; without names every card of the host."""
    if declared is None:
        return [row for row in rows if row.instance is None]
    return [row for name in declared for row in rows if called(row, name)]


def called(row: HostGpu, name: Name) -> bool:
    """Whether a GPU is the one of that index or UUID."""
    return name in (row.index, row.uuid)


def smallest(used: Sequence[HostGpu], own: Sequence[gpus.Gpu] = ()) -> gpus.Gpu:
    """The card of a service that has the least memory: vLLM plans for all ranks with the least that one has
    (v1/core/kv_cache_utils.py get_kv_cache_configs). Raises DeclarationError for an unknown card.
    """
    cards = [card(row, own) for row in used]
    return min(cards, key=lambda card: card.usable_bytes)


def card(row: HostGpu, own: Sequence[gpus.Gpu] = ()) -> gpus.Gpu:
    """The card that a host tells of; a MIG instance is another one than its card, whose name it prints.

    Raises DeclarationError for an unknown one.
    """
    if row.instance is not None and row.compute_capability and row.memory_mib:
        return gpus.described(named(row), row.compute_capability, row.memory_mib)
    return gpus.find(row.name or "", row.compute_capability, row.memory_mib, own)


def named(row: HostGpu) -> str:
    """The name of a GPU as nvidia-smi prints it, and the profile of a MIG instance."""
    name = row.name or ""
    return name if row.instance is None else f"{name} MIG {row.instance}"


def unlike(used: Sequence[HostGpu], own: Sequence[gpus.Gpu] = ()) -> list[str]:
    """The problem of cards that can't serve one model together, if any.

    Kernels follow the compute capability, and every card waits for the slowest at each layer.
    """
    names = {row.name or "" for row in used}
    if len(names) <= 1:
        return []
    try:
        cards = [card(row, own) for row in used]
    except DeclarationError:
        return []  # said of the card itself
    speeds = [card.bandwidth_gb_s for card in cards]
    slowest = min(filter(None, speeds), default=0.0) if all(speeds) else 0.0
    alike = len({card.compute_capability for card in cards}) == 1
    if alike and all(speed and speed <= MOST_UNLIKE * slowest for speed in speeds):
        return []
    reason = "one is much slower" if alike else "their compute capabilities differ"
    return [f"gpus: {', '.join(sorted(names))} can't serve one model together: {reason}"]


def said(row: HostGpu) -> str:
    """How a message names a GPU."""
    if row.instance is not None:
        return f"MIG instance {row.instance} {row.uuid} of GPU {row.card} ({row.name})"
    return f"GPU {row.index} ({row.name})"


def problems(declared: Sequence[Name] | None, rows: Sequence[HostGpu], runtime_version: str) -> list[str]:
    """The problems of a service's GPU names on this host."""
    missing = [name for name in declared or () if not any(called(row, name) for row in rows)]
    found = []
    if missing:
        found.append(f"gpus: {', '.join(map(str, missing))} not there; this host has {listed(rows)}")
    used = chosen(declared, rows)
    for row in used:
        if row.split:
            instances = [str(each.uuid) for each in rows if each.instance and each.card == row.card]
            found.append(
                f"gpus: {said(row)} is split by MIG and can't be used whole: declare one of its instances, "
                f"{', '.join(instances) or 'of which it has none'}, or another card"
            )
    found += [
        f"gpus: nvidia-smi doesn't tell the memory of {said(row)}: name a card, or another instance"
        for row in used
        if row.instance is not None and not row.memory_mib
    ]
    if any(row.instance for row in used) and not takes_uuids(runtime_version):
        found.append(
            f"gpus: vLLM {runtime_version} can't be given a MIG instance, which has no index: use runtime "
            f"{UUIDS_FROM} or newer"
        )
    return found


def warnings(declared: Sequence[Name] | None, rows: Sequence[HostGpu]) -> list[str]:
    """VLLM asks NVML for the card whose index is the instance's number on its card (nvmlDeviceGetIndex)."""
    cards = {row.index: row for row in rows if row.instance is None}
    return [
        f"{said(row)}: vLLM takes its number {row.number} for the index of a card and asks the driver for"
        " that one's name, capability and memory"
        for row in chosen(declared, rows)
        if row.instance is not None and row.number != row.card
        if row.number not in cards or cards[row.number].name != row.name
    ]


def takes_uuids(runtime_version: str) -> bool:
    return not versions.below(versions.parse(runtime_version), UUIDS_FROM)


def environment(
    declared: Sequence[Name] | None, rows: Sequence[HostGpu], runtime_version: str
) -> dict[str, str]:
    """The variables that give a service its GPUs, and no other, whatever order the driver counts in."""
    if declared is None:
        return {}
    names = [name if takes_uuids(runtime_version) else _index(name, rows) for name in declared]
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, names))}


def _index(name: Name, rows: Sequence[HostGpu]) -> Name:
    return next((row.index for row in rows if called(row, name) and row.index is not None), name)


def listed(rows: Sequence[HostGpu]) -> str:
    """The GPUs of a host in the form of a declaration."""
    return ", ".join(
        str(row.uuid) if row.instance is not None else f"{row.index} ({row.uuid})" for row in rows
    )
