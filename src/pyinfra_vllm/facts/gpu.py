"""The GPUs of a host and who uses them, as nvidia-smi tells it."""

from __future__ import annotations

import csv
from typing import Any

from pyinfra.api import FactBase
from typing_extensions import override

GPU_FIELDS = ("index", "uuid", "name", "memory_mib", "driver", "compute_capability", "ecc")
GPU_QUERY = "index,uuid,name,memory.total,driver_version,compute_cap,ecc.mode.current"
PROCESS_FIELDS = ("gpu", "pid", "unit", "used_mib", "name")
PROCESS_QUERY = "gpu_uuid,pid,used_memory,process_name"
SEPARATOR = "--processes--"
# The unit of a process is the last service or scope in its control group's path.
UNIT = r"sed -n 's|.*/\([^/]*\.\(service\|scope\)\).*|\1|p' /proc/$((pid))/cgroup 2>/dev/null | head -n 1"


class Gpus(FactBase[list[dict[str, Any]]]):
    """
    The NVIDIA GPUs of a host; [] where there is no nvidia-smi. A driver that doesn't answer is an error.

    .. code:: python

        [{
            "index": 0, "uuid": "GPU-...", "name": "NVIDIA H200", "memory_mib": 143771, "driver": "580.159.04",
            "compute_capability": "9.0", "ecc": "Enabled",
            "processes": [{"pid": 4711, "unit": "vllm-chat.service", "used_mib": 130000, "name": "VLLM::EngineCore"}],
        }]
    """

    default = list

    @override
    def command(self) -> str:
        options = "--format=csv,noheader,nounits"
        return (
            # A host without GPUs is not an error; pyinfra would warn of a command that is required and not there.
            "! command -v nvidia-smi >/dev/null || { "
            f"nvidia-smi --query-gpu={GPU_QUERY} {options} && echo {SEPARATOR} && "
            # Not in a pipe, which would hide that it failed: a GPU in use would pass for a free one.
            f"apps=$(nvidia-smi --query-compute-apps={PROCESS_QUERY} {options}) && "
            "printf '%s\\n' \"$apps\" | while IFS=, read -r gpu pid rest; do "
            f'[ -z "$gpu" ] || echo "$gpu,$pid,$({UNIT}),$rest"; done; }}'
        )

    @override
    def process(self, output: list[str]) -> list[dict[str, Any]]:
        lines = [line for line in output if line.strip()]
        split = lines.index(SEPARATOR) if SEPARATOR in lines else len(lines)
        processes = _rows(PROCESS_FIELDS, lines[split + 1 :])
        return [
            {
                **row,
                "index": int(row["index"]),
                "memory_mib": _number(row["memory_mib"]) or 0,
                "processes": [_process(each) for each in processes if each["gpu"] == row["uuid"]],
            }
            for row in _rows(GPU_FIELDS, lines[:split])
        ]


def _rows(fields: tuple[str, ...], lines: list[str]) -> list[dict[str, str]]:
    """Rows of nvidia-smi's CSV; the last field keeps any commas (a process name may have some)."""
    rows = csv.reader(lines, skipinitialspace=True, quoting=csv.QUOTE_NONE)
    width = len(fields)
    return [
        dict(zip(fields, [*row[: width - 1], ", ".join(row[width - 1 :])], strict=True))
        for row in rows
        if len(row) >= width
    ]


def _process(row: dict[str, str]) -> dict[str, Any]:
    return {
        "pid": int(row["pid"]),
        "unit": row["unit"] or None,
        "used_mib": _number(row["used_mib"]),
        "name": row["name"],
    }


def _number(text: str) -> int | None:
    """nvidia-smi prints [N/A] for what a card doesn't tell."""
    return int(text) if text.isdigit() else None
