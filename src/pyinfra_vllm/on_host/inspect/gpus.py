"""The NVIDIA GPUs of this host, whole cards and MIG instances, and who uses them, as nvidia-smi tells it.

Reads only.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..state import cgroup
from . import nvidia

if TYPE_CHECKING:  # imported where instances are; few hosts have any
    from xml.etree.ElementTree import Element

CARD = (
    "index",
    "uuid",
    "name",
    "memory.total",
    "memory.used",
    "driver_version",
    "compute_cap",
    "ecc.mode.current",
    "mig.mode.current",
)
# Those that drivers too old for them refuse ("Field "compute_cap" is not a valid field to query."): told as
# None.
NEWER = {"compute_cap", "ecc.mode.current", "mig.mode.current"}
PROCESS = ("gpu_uuid", "pid", "used_memory", "process_name")
# Chips whose GPU has no memory of its own: nvidia-smi prints [N/A] for it, and CUDA takes the host's.
UNIFIED = re.compile(r"\b(GB10|Orin|Thor)\b")
MEMINFO = Path("/proc/meminfo")
FORMAT = "--format=csv,noheader,nounits"
_REFUSED = re.compile(r'Field "([a-z._]+)" is not a valid field')
_LISTED_CARD = re.compile(r"GPU +(\d+): .*\(UUID: (GPU-[^)]+)\)")
_LISTED_INSTANCE = re.compile(r" +MIG +(\S+) +Device +(\d+): +\(UUID: (MIG-[^)]+)\)")


@dataclass(frozen=True)
class Process:
    """A process on a GPU; its number is None where it is in another PID namespace."""

    pid: int | None
    unit: str | None
    used_mib: int | None
    name: str | None


@dataclass(frozen=True)
class Gpu:
    """A whole card, or a MIG instance of one. None: nvidia-smi does not tell.

    index: of a card; an instance has none of its own
    card: the index of the card
    instance: the profile of an instance, and number: its place on its card
    split: MIG is on, so the card itself can't be used
    """

    index: int | None
    uuid: str | None
    name: str | None
    memory_mib: int | None
    used_mib: int | None
    driver: str | None
    compute_capability: str | None
    ecc: str | None
    card: int
    instance: str | None
    split: bool
    processes: tuple[Process, ...] = ()
    number: int | None = None


@dataclass(frozen=True)
class Found:
    """The GPUs of a host, or the problem why they are unknown."""

    gpus: tuple[Gpu, ...]
    problem: str | None


def gpus() -> list[Gpu]:
    """Every card in the order of its index, each followed by its MIG instances; [] without nvidia-smi.

    Raises nvidia.NoAnswer.
    """
    if not nvidia.there():
        return []
    cards = _cards()
    return _with_instances(cards) if any(card.split for card in cards) else _with_processes(cards)


def _cards() -> list[Gpu]:
    return [
        Gpu(
            index=int(str(row["index"])),
            uuid=row["uuid"],
            name=row["name"],
            memory_mib=_number(row["memory.total"]) or _unified_mib(row["name"]),
            used_mib=_number(row["memory.used"]),
            driver=row["driver_version"],
            compute_capability=row["compute_cap"],
            ecc=row["ecc.mode.current"],
            card=int(str(row["index"])),
            instance=None,
            split=row["mig.mode.current"] == "Enabled",
        )
        for row in _rows(CARD, "--query-gpu=")
    ]


def _unified_mib(name: str | None) -> int | None:
    """The host's memory in MiB, for a chip whose GPU shares it; None for any other."""
    if not UNIFIED.search(name or ""):
        return None
    try:
        found = re.search(r"^MemTotal: +(\d+) kB", MEMINFO.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) // 1024 if found else None


def _rows(columns: tuple[str, ...], query: str) -> list[dict[str, str | None]]:
    """nvidia-smi's CSV; the last column keeps any commas (a process name may have some)."""
    asked = list(columns)
    while True:
        try:
            text = nvidia.ask(query + ",".join(asked), FORMAT)
            break
        except nvidia.NoAnswer as error:
            refused = _REFUSED.search(str(error))
            if refused is None or refused.group(1) not in NEWER.intersection(asked):
                raise
            asked.remove(refused.group(1))
    found = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True, quoting=csv.QUOTE_NONE):
        if not any(row):
            continue
        if len(row) < len(asked):
            raise nvidia.NoAnswer(f"`nvidia-smi {query}...` answered {', '.join(row)[:200]!r}")
        values = [*row[: len(asked) - 1], ", ".join(row[len(asked) - 1 :])]
        found.append({**dict.fromkeys(columns), **dict(zip(asked, (value.strip() for value in values)))})
    return found


def _with_processes(cards: Sequence[Gpu]) -> list[Gpu]:
    found: dict[str | None, list[Process]] = {}
    for row in _rows(PROCESS, "--query-compute-apps="):
        process = _process(row["pid"], row["used_memory"], row["process_name"])
        found.setdefault(row["gpu_uuid"], []).append(process)
    return [replace(card, processes=tuple(found.get(card.uuid, ()))) for card in cards]


def _process(pid: str | None, used: str | None, name: str | None) -> Process:
    number = _number(pid)
    unit = cgroup.unit_of(cgroup.PROC / str(number)) if number is not None else None
    return Process(number, unit, _number(used), name)


def _with_instances(cards: Sequence[Gpu]) -> list[Gpu]:
    """`nvidia-smi -L` has the instances' UUIDs, and only the whole report their memory and processes."""
    from xml.etree import ElementTree

    uuids, profiles = _listed()
    try:
        report = ElementTree.fromstring(nvidia.ask("-q", "-x"))
    except ElementTree.ParseError as error:
        raise nvidia.NoAnswer(f"`nvidia-smi -q -x` printed no XML: {error}") from error
    parts = {_text(part, "uuid"): part for part in report.iter("gpu")}
    found = []
    for card in cards:
        part = parts.get(card.uuid)
        if part is None:
            raise nvidia.NoAnswer(f"`nvidia-smi -q -x` says nothing of {card.uuid}")
        processes = [
            (
                _place(each),
                _process(_text(each, "pid"), _text(each, "used_memory"), _text(each, "process_name")),
            )
            for each in part.iter("process_info")
            if _text(each, "type") != "G"
        ]
        instances = []
        for device in part.iter("mig_device"):
            key = (card.card, _text(device, "index"))
            if key not in uuids:
                raise nvidia.NoAnswer(f"`nvidia-smi -L` has no UUID of MIG device {key[1]} of GPU {key[0]}")
            memory = device.find("fb_memory_usage")
            instances.append(
                replace(
                    card,
                    index=None,
                    uuid=uuids[key],
                    instance=profiles[key],
                    number=int(str(key[1])),
                    split=False,
                    memory_mib=_number(_text(memory, "total")),
                    used_mib=_number(_text(memory, "used")),
                    processes=tuple(process for place, process in processes if place == _place(device)),
                )
            )
        found += [replace(card, processes=tuple(process for _, process in processes)), *instances]
    return found


def _listed() -> tuple[dict[tuple[int, str | None], str], dict[tuple[int, str | None], str]]:
    """UUID and profile of each MIG device, by its card's index and its own number."""
    uuids: dict[tuple[int, str | None], str] = {}
    profiles: dict[tuple[int, str | None], str] = {}
    index = -1
    for line in nvidia.ask("-L").splitlines():
        card, instance = _LISTED_CARD.match(line), _LISTED_INSTANCE.match(line)
        if card:
            index = int(card.group(1))
        elif instance:
            key = (index, instance.group(2))
            profiles[key], uuids[key] = instance.group(1), instance.group(3)
    return uuids, profiles


def _place(element: Element) -> tuple[str | None, str | None]:
    return _text(element, "gpu_instance_id"), _text(element, "compute_instance_id")


def _text(element: Element | None, name: str) -> str | None:
    found = element.findtext(name) if element is not None else None
    return found.strip() if found else None


def _number(text: str | None) -> int | None:
    """The number in `1234` or `1234 MiB`; None for [N/A] and the like."""
    found = re.fullmatch(r"(\d+)( MiB)?", text or "")
    return int(found.group(1)) if found else None


def main(argv: list[str]) -> int:
    """Prints one JSON object: the GPUs, or why they can't be told."""
    try:
        found = Found(tuple(gpus()), None)
    except nvidia.NoAnswer as error:
        found = Found((), str(error))
    json.dump(asdict(found), sys.stdout)
    return 0
