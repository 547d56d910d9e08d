"""AWQ on a processor without AVX-512: the cached real vLLM gets a plugin with the product that it lacks.

The plugin is of the lab alone (in_vllm/lab_awq_without_avx512.py); everything else stays the real vLLM.
"""

from __future__ import annotations

import os
from pathlib import Path

NAME = "lab_awq_without_avx512"
PLUGIN = Path(__file__).parent / "in_vllm" / f"{NAME}.py"
METADATA = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1\n"
ENTRY_POINTS = (
    f"[vllm.general_plugins]\n{NAME} = {NAME}:register\n"  # vLLM loads these in each of its processes
)


def add_to(venv: Path, cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Add the plugin as it is now, unless the processor needs none or the venv has it.

    Other labs may be serving from the venv: each file appears whole, last the one that makes vLLM load it.
    """
    if "avx512f" in cpuinfo.read_text().split():
        return
    (site,) = venv.glob("lib/python3*/site-packages")
    metadata = site / f"{NAME}-1.dist-info"
    metadata.mkdir(exist_ok=True)
    _put(site / PLUGIN.name, PLUGIN.read_text())
    _put(metadata / "METADATA", METADATA)
    _put(metadata / "entry_points.txt", ENTRY_POINTS)


def _put(file: Path, text: str) -> None:
    if file.exists() and file.read_text() == text:
        return
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.rename(file)
