"""Processes, power, disks and files that are broken, and how they are mended where the fault does not pass by
itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab import disk as disks
from lab.shell import run

from .fault import RETRIED_S, SOON_S, Act, Fault, Scene, both
from .ground import ROOT, SLOWNESS, STATE, Ground

HANG_S = 3.0
SHUTDOWN_S = 15.0  # for an orderly shutdown in the middle of a switch, which has nothing to wait for
RUNTIMES = {"a": "/opt/vllm-a", "b": "/opt/vllm-b"}  # one for each checkpoint, so that one can be deleted


# Processes


def kill(ground: Ground, scene: Scene) -> None:
    ground.signal("KILL", scene.pid)


def kill_beside_a_stubborn_child(ground: Ground, scene: Scene) -> None:
    """A hook that ignores SIGTERM outlives the transaction: what is left in its unit must not hold the
    recovery up.
    """
    if not scene.pid:
        return
    words = ("sh", "-c", "trap '' TERM; echo $$; exec >/dev/null; while :; do sleep 1; done")
    child = ground.beside(*words)
    for group in ground.groups():
        (group / "cgroup.procs").write_text(str(child))
    kill(ground, scene)


_KILL_CHILDREN = """
import os, pathlib, signal, sys, time
parent = int(sys.argv[1])
os.kill(parent, signal.SIGCONT)
end = time.monotonic() + 1.5
while time.monotonic() < end:
    try:
        children = pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:
        break
    for child in children:
        try:
            os.kill(int(child), signal.SIGKILL)
        except ProcessLookupError:
            pass
"""


def kill_children(ground: Ground, scene: Scene) -> None:
    if scene.pid:
        ground.inside("python3", "-", str(scene.pid), stdin=_KILL_CHILDREN)


def crash(ground: Ground, scene: Scene) -> None:
    if pid := ground.server():
        ground.signal("KILL", pid)


def end_with_zero(ground: Ground, scene: Scene) -> None:
    """The stub ends with status 0 on SIGTERM, as vLLM does when its engine died."""
    if pid := ground.server():
        ground.signal("TERM", pid)


def hang(ground: Ground, scene: Scene) -> None:
    """It hangs until it is stopped: systemd wakes what it stops."""
    if pid := ground.server():
        ground.signal("STOP", pid)


_KEEP_STOPPED = """
import os, signal, sys, time
end = time.monotonic() + 90
while time.monotonic() < end:
    try:
        os.kill(int(sys.argv[1]), signal.SIGSTOP)
    except ProcessLookupError:
        break
    time.sleep(0.002)
"""


def hang_through_stop(ground: Ground, scene: Scene) -> None:
    """It hangs, and goes on hanging when it is told to stop: whatever wakes it, it is stopped again."""
    if pid := ground.server():
        words = (
            "systemd-run",
            "--unit=hold",
            "--collect",
            "--quiet",
            "python3",
            "-c",
            _KEEP_STOPPED,
            str(pid),
        )
        ground.inside(*words)


def hang_a_while(ground: Ground, scene: Scene) -> None:
    if pid := ground.server():
        ground.signal("STOP", pid)
        ground.signal("CONT", scene.pid)
        time.sleep(HANG_S)
        ground.signal("CONT", pid)


# Power, journal


def power_cut(ground: Ground, scene: Scene) -> None:
    ground.reboot()


def power_off_in_order(ground: Ground, scene: Scene) -> None:
    """Somebody shuts the host down and switches it on again."""
    _in_time(ground.power_off(), scene)
    ground.power_on()


def reboot_in_order(ground: Ground, scene: Scene) -> None:
    _in_time(ground.reboot_in_order(), scene)


def _in_time(seconds: float, scene: Scene) -> None:
    if seconds > SHUTDOWN_S * SLOWNESS:
        scene.wrong.append(f"the orderly shutdown took {seconds:.0f} s; {SHUTDOWN_S:.0f} s is the limit")


def tear(ground: Ground, scene: Scene) -> None:
    """The process dies in the middle of writing its next entry."""
    _write_half_a_line(ground)
    kill(ground, scene)


def tear_and_cut_power(ground: Ground, scene: Scene) -> None:
    _write_half_a_line(ground)
    power_cut(ground, scene)


def _write_half_a_line(ground: Ground) -> None:
    with suppress(OSError), (ground.outside(STATE) / "journal.jsonl").open("ab") as file:
        file.write(b'{"at": "2026-11-21T03:00:00.000+00:00", "tx": "20261121T03')


# Disks


def fill(ground: Ground, scene: Scene) -> None:
    """Not one free block is left."""
    ground.inside(
        "sh",
        "-c",
        f"dd if=/dev/zero of={ROOT}/.filler bs=64k; dd if=/dev/zero of={ROOT}/.filler2 bs=512",
        check=False,
    )


def empty(ground: Ground, scene: Scene) -> None:
    ground.inside("rm", "-f", f"{ROOT}/.filler", f"{ROOT}/.filler2")


def make_read_only(ground: Ground, scene: Scene) -> None:
    """A file system does this by itself after an error, whoever has files open on it."""
    assert ground.disk is not None
    disks.fail(ground.disk.mount(ground.host.place))


def check_disk_and_boot(ground: Ground, scene: Scene) -> None:
    assert ground.disk is not None
    ground.host.power_cut()
    disks.repair(ground.disk, ground.host.place)
    ground.power_on()


# What a release needs


def _release(ground: Ground, release_id: str) -> dict[str, Any]:
    path = ground.outside(STATE) / "releases" / release_id / "release.json"
    return dict(json.loads(path.read_text()))


def _weights(ground: Ground, release_id: str) -> Path:
    return ground.outside(_release(ground, release_id)["checkpoint"]["directory"]) / "model.safetensors"


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip(path: Path) -> None:
    """One bit of the header: the stub reads no further."""
    with path.open("r+b") as file:
        file.seek(8)
        byte = file.read(1)[0]
        file.seek(8)
        file.write(bytes([byte ^ 0x40]))


def damage(which: str, how: Callable[[Path], None]) -> tuple[Act, Act]:
    """Damage the checkpoint of the old or the new release, and lay the same file back, its times included."""

    def strike(ground: Ground, scene: Scene) -> None:
        path = _weights(ground, getattr(scene, which))
        run("cp", "--preserve=all", path, ground.host.place / "weights")
        how(path)

    def mend(ground: Ground, scene: Scene) -> None:
        run("cp", "--preserve=all", ground.host.place / "weights", _weights(ground, getattr(scene, which)))

    return strike, mend


def delete_runtime(which: str) -> tuple[Act, Act]:
    """The directory is gone; a server that runs has it in memory."""

    def place(ground: Ground, scene: Scene) -> str:
        return str(Path(_release(ground, getattr(scene, which))["argv"][0]).parents[1])

    def strike(ground: Ground, scene: Scene) -> None:
        ground.inside("mv", place(ground, scene), "/opt/deleted")

    def mend(ground: Ground, scene: Scene) -> None:
        ground.inside("mv", "/opt/deleted", place(ground, scene))

    return strike, mend


def leave_lock(text: str) -> Act:
    """The process dies, and the lock file says something that nobody can rely on."""

    def strike(ground: Ground, scene: Scene) -> None:
        with suppress(OSError):  # a disk that another fault has filled
            (ground.outside(STATE) / "lock").write_text(text)
        kill(ground, scene)

    return strike


def _damaged(which: str, how: str, act: Callable[[Path], None]) -> Fault:
    strike, mend = damage(which, act)
    title = f"checkpoint of the {which} release {how}"
    old = which == "old"
    return Fault(title, strike, mend, spares_new=old, limit_s=RETRIED_S if old else SOON_S)


def _no_runtime(which: str) -> Fault:
    strike, mend = delete_runtime(which)
    title = f"runtime of the {which} release deleted"
    old = which == "old"
    return Fault(title, strike, mend, spares_new=old, limit_s=RETRIED_S if old else SOON_S)


_delete_old, _lay_old_back = damage("old", Path.unlink)

BROKEN: dict[str, Fault] = {
    "nothing": Fault("nothing at all"),
    "kill": Fault("SIGKILL of the transaction", kill, deadly=True),
    "stubborn-child": Fault(
        "SIGKILL beside a child that ignores SIGTERM", kill_beside_a_stubborn_child, deadly=True
    ),
    "no-way-back": Fault(
        "checkpoint of the old release deleted, and a power cut",
        both(_delete_old, power_cut),
        _lay_old_back,
        deadly=True,
        # until the checkpoint is back, the transaction stays open and the new release may serve
        lasting=True,
        limit_s=RETRIED_S,
        spares_new=True,
    ),
    "kill-children": Fault("SIGKILL of the transaction's children, for 1.5 s", kill_children),
    "power": Fault("power cut and boot", power_cut, deadly=True),
    "power-off": Fault("orderly power-off and boot", power_off_in_order, deadly=True),
    "reboot": Fault("orderly reboot", reboot_in_order, deadly=True),
    "torn": Fault("SIGKILL in the middle of a journal line", tear, deadly=True),
    "torn-power": Fault("power cut in the middle of a journal line", tear_and_cut_power, deadly=True),
    "full": Fault("disk full", fill, empty, lasting=True, limit_s=RETRIED_S),
    "read-only": Fault(
        "file system read-only after an error",
        make_read_only,
        check_disk_and_boot,
        lasting=True,
        limit_s=RETRIED_S,
    ),
    "crash": Fault("SIGKILL of vLLM", crash),
    "exit-0": Fault("vLLM ends with status 0", end_with_zero),
    "hang": Fault("vLLM hangs", hang, limit_s=60),
    "hang-stop": Fault("vLLM hangs, also in its stop", hang_through_stop, limit_s=90),
    "hang-a-while": Fault(f"vLLM hangs for {HANG_S:.0f} s", hang_a_while, limit_s=60),
    **{
        f"{how}-{which}": _damaged(which, how, act)
        for which in ("new", "old")
        for how, act in (("truncated", truncate), ("flipped", flip), ("deleted", Path.unlink))
    },
    "no-runtime-new": _no_runtime("new"),
    "no-runtime-old": _no_runtime("old"),
    "clock-ahead": Fault("clock steps 5 h ahead", clock_s=5 * 3600),
    "clock-back": Fault("clock steps 5 h back", clock_s=-5 * 3600),
    "stale-lock": Fault(
        "SIGKILL; lock file of a dead holder", leave_lock('{"holder": "ghost", "pid": 1}'), deadly=True
    ),
    "torn-lock": Fault("SIGKILL; lock file without a readable holder", leave_lock('{"hol'), deadly=True),
    "calibration": Fault("a calibration that restarts the service twelve times", limit_s=300, lasts_s=110),
    "itself": Fault("the release's own fault", limit_s=120),
}
