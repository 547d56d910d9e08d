"""Shortages: of inodes, of room in /run, of memory and of file handles."""

from __future__ import annotations

from .fault import RETRIED_S, Fault, Scene
from .ground import ROOT, Ground

LOW_MIB = 8  # systemd refuses to reload with less than 16 MiB free in /run

_TAKE_INODES = """
import os, sys
try:
    os.makedirs(sys.argv[1])
    for number in range(10 ** 7):
        os.close(os.open(f"{sys.argv[1]}/{number}", os.O_CREAT | os.O_WRONLY))
except OSError:
    pass
"""


def take_inodes(ground: Ground, scene: Scene) -> None:
    """Not one free inode is left on the disk that the releases are on; blocks are."""
    ground.inside("python3", "-", f"{ROOT}/.inodes", stdin=_TAKE_INODES)


def give_inodes_back(ground: Ground, scene: Scene) -> None:
    ground.inside("rm", "-rf", f"{ROOT}/.inodes")


def _shrink_run(free_kib: int) -> str:
    """/run as small as what is in it, and so much more."""
    used = "$(df --output=used -k /run | tail -1)"
    return f"mount -o remount,size=$(({used} + {free_kib}))k /run"


def low_run(ground: Ground, scene: Scene) -> None:
    ground.inside("sh", "-c", _shrink_run(LOW_MIB << 10))


def full_run(ground: Ground, scene: Scene) -> None:
    ground.inside("sh", "-c", _shrink_run(4))


def widen_run(ground: Ground, scene: Scene) -> None:
    ground.inside("mount", "-o", "remount,size=20%", "/run")


def few_handles(ground: Ground, scene: Scene) -> None:
    """The process at the fault point, and whatever it starts, can open no file more."""
    if not scene.pid:
        return
    open_now = ground.inside("sh", "-c", f"ls /proc/{scene.pid}/fd | wc -l").strip()
    ground.inside("prlimit", f"--nofile={open_now}:{open_now}", "--pid", str(scene.pid), check=False)


def little_memory(ground: Ground, scene: Scene) -> None:
    """The process at the fault point gets hardly any memory more, and nor does whatever it starts."""
    if not scene.pid:
        return
    status = ground.inside("cat", f"/proc/{scene.pid}/status")
    size_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmSize"))
    limit = (size_kib << 10) + (1 << 20)
    ground.inside("prlimit", f"--as={limit}:{limit}", "--pid", str(scene.pid), check=False)


SHORTAGES: dict[str, Fault] = {
    "inodes": Fault("no inode left", take_inodes, give_inodes_back, lasting=True, limit_s=RETRIED_S),
    "run-low": Fault(
        f"{LOW_MIB} MiB left in /run: systemd reloads nothing", low_run, widen_run, lasting=True
    ),
    "run-full": Fault("/run is full", full_run, widen_run, lasting=True, limit_s=RETRIED_S),
    "handles": Fault("the transaction can open no file more", few_handles),
    "memory": Fault("the transaction gets no memory more", little_memory),
}
