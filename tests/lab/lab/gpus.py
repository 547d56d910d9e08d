"""The NVIDIA GPUs of this machine: which of them the lab may use, and what a host is given to see its own.

A GPU's number here is that of its device node: 2 is /dev/nvidia2. Hosts are given the nodes of their own
cards only, and no right to make others, so that for a host no other card exists.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from . import prerequisites, venvs
from .shell import LabError, run

CHOSEN = "PYINFRA_VLLM_LAB_GPUS"  # numbers like "2,3": what this lab may use; all where it isn't set
COMMON = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-caps")  # what every card needs
# Where an image keeps the whole driver in one directory; elsewhere it lies among the system's libraries.
ONE_PLACE = Path("/usr/local/nvidia")
_DRIVER = re.compile(r"lib(cuda|nvcuvid|nvidia-[a-z-]+|nvoptix)\.so")


def mine(dev: Path = Path("/dev")) -> tuple[int, ...]:
    """The numbers of the GPUs that this lab may use; () on a machine without any."""
    here = sorted(int(path.name[6:]) for path in dev.glob("nvidia[0-9]*"))
    chosen = os.environ.get(CHOSEN)
    if chosen is None:
        return tuple(here)
    wanted = [int(number) for number in chosen.split(",") if number]
    if missing := [number for number in wanted if number not in here]:
        raise LabError(f"{CHOSEN}={chosen}: no GPU {missing[0]} here; this machine has {here or 'none'}")
    return tuple(wanted)


def for_hosts() -> tuple[int, ...]:
    """The default cards of a host: every card of the lab, if its vLLM is one for GPUs, else
    none.
    """
    return mine() if venvs.named() else ()


def devices(numbers: Iterable[int], dev: Path = Path("/dev")) -> tuple[Path, ...]:
    """The device nodes by which a host uses these cards; () for none."""
    cards = [dev / f"nvidia{number}" for number in numbers]
    return (*cards, *(dev / name for name in COMMON if (dev / name).exists())) if cards else ()


def driver(numbers: Sequence[int]) -> dict[Path, str]:
    """The parts of this machine's driver that a host must see, and where; {} for a host without a card."""
    if not numbers:
        return {}
    program = shutil.which("nvidia-smi")
    if program is None:
        raise LabError(
            "there are GPUs, and no nvidia-smi in PATH: install the driver's programs (nvidia-smi, libcuda)"
        )
    seen = {Path(program).resolve(): "/usr/bin/nvidia-smi"}
    if ONE_PLACE.is_dir():
        return {ONE_PLACE: str(ONE_PLACE), **seen}
    paths = [line.rpartition(" => ")[2].strip() for line in run("ldconfig", "-p").stdout.splitlines()]
    return {Path(path): path for path in paths if _DRIVER.match(Path(path).name)} | seen


def missing() -> list[str]:
    """The reasons why this machine can't serve on GPUs in a lab; [] where nothing does."""
    if os.geteuid() != 0:
        return ["no root: the lab boots containers and makes network bridges"]
    here = (
        [] if mine() else ["no NVIDIA GPU: there is no /dev/nvidia0, or it may not be used (" + CHOSEN + ")"]
    )
    if not os.environ.get(venvs.NAMED):
        here.append(f"no vLLM for GPUs: name a venv that has one in {venvs.NAMED}")
    try:
        prerequisites.ensure()
        venvs.named()
    except LabError as error:
        here.append(str(error))
    return here


def names() -> list[str]:
    """nvidia-smi's names of this machine's cards, as in `GPU 0: NVIDIA H200 (UUID: GPU-...)`; [] without
    it.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    return run("nvidia-smi", "-L", check=False).stdout.splitlines()
