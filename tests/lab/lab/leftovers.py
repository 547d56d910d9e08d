"""Finding and removing what a lab left on this machine: processes, mounts, loop devices, interfaces, files.

Everything is found by names that only the lab uses, never by a list that a killed lab could not have written.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import time
from pathlib import Path

from . import cgroups, network
from .layout import BRIDGE, MACHINE_PREFIX, PROJECT, STATE, WORK
from .shell import LabError, run

_UNEXPORT = "/run/systemd/nspawn"
# What /proc says of a process that is no host's: it ended while we looked (a zombie's mountinfo is an invalid
# argument), or not even root may look at it, as in some containers at the first process.
NOT_OURS = (errno.ENOENT, errno.ESRCH, errno.EINVAL, errno.EACCES)


def find() -> dict[str, list[str]]:
    """The parts of a lab that are on this machine, by kind; all empty when there are none."""
    found = {
        "processes": [str(pid) for pid in processes()],
        "mounts": [str(path) for path in mounts()],
        "loop devices": loops(),
        "interfaces": network.interfaces(),
        "control groups": [str(path) for path in cgroups.find()],
        "files": [str(path) for path in (WORK, STATE, PROJECT) if path.exists()],
    }
    return {kind: names for kind, names in found.items() if names}


def remove() -> None:
    """Remove all of it, hosts first; safe to run at any time by the holder of the lab's lock."""
    kill(processes())
    for path in reversed(mounts()):
        unmount(path)
    for device in loops():
        run("losetup", "--detach", device, check=False)
    for name in sorted(network.interfaces(), key=lambda name: name == BRIDGE):
        run("ip", "link", "del", name, check=False)
    cgroups.remove()
    STATE.unlink(missing_ok=True)
    for path in (WORK, PROJECT):
        if path.exists():
            shutil.rmtree(path)
    left = find()
    if left:
        raise LabError(f"could not remove what an earlier lab left: {left}")


def processes(name: str | None = None) -> list[int]:
    """Processes of the lab's hosts (of one host, when named), the containers' supervisors first."""
    machine = f"--machine={MACHINE_PREFIX}{name or ''}"
    upper = f"upperdir={WORK}/{name}/" if name else f"upperdir={WORK}/"
    here = Path("/proc/self/ns/mnt").readlink()
    supervisors, inside = [], []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            elsewhere = (entry / "ns/mnt").readlink() != here
            mounted = (entry / "mountinfo").read_text() if elsewhere else ""
        except OSError as error:
            if error.errno not in NOT_OURS:
                raise
            continue
        if words[0].endswith("systemd-nspawn") and any(_is(word, machine, name) for word in words):
            supervisors.append(int(entry.name))
        elif upper in mounted:
            inside.append(int(entry.name))
    return supervisors + inside


def _is(word: str, machine: str, name: str | None) -> bool:
    return word == machine if name else word.startswith(machine)


def kill(pids: list[int], timeout: float = 15) -> None:
    """SIGKILL, and wait until the kernel has really taken them away."""
    for pid in pids:
        signal_if_there(pid, signal.SIGKILL)
    deadline = time.monotonic() + timeout
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            raise LabError(
                f"processes {[pid for pid in pids if alive(pid)]} outlived SIGKILL by {timeout:.0f} s"
            )
        time.sleep(0.02)


def signal_if_there(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended by itself, which is what was wanted


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # a zombie waits only for its parent


def mounts(under: Path = WORK) -> list[Path]:
    """Mount points of the lab on this machine, in the order they were made."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    plain = [re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point) for point in points]
    nspawn = re.compile(rf"^{_UNEXPORT}/[a-z-]+/{MACHINE_PREFIX}")
    return [
        Path(point)
        for point in plain
        if f"{point}/".startswith(f"{under}/") or (under == WORK and nspawn.match(point))
    ]


def unmount(path: Path, timeout: float = 10) -> None:
    """A mount stays busy for a moment after the last process inside was killed."""
    deadline = time.monotonic() + timeout
    while run("umount", path, check=False).returncode != 0:
        if path not in mounts(path.parent):
            return
        if time.monotonic() > deadline:
            run("umount", "--lazy", path)
            return
        time.sleep(0.05)


def loops() -> list[str]:
    """Loop devices whose file belongs to the lab (also when the file is gone)."""
    lines = run(
        "losetup", "--noheadings", "--list", "--output", "NAME,BACK-FILE", check=False
    ).stdout.splitlines()
    return [line.split()[0] for line in lines if f" {WORK}/" in f" {line.split(None, 1)[-1]}"]
