"""Every way in which a host is broken, and how it is mended where the fault does not pass by itself.

A fault gets the host and the process that stands at the fault point. Unless it is `deadly`, the process goes on afterwards.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import disk as disks
from lab.shell import run

from pyinfra_vllm.on_host.order import ROLLBACK

from .ground import ROOT, STATE, Ground

PORT = 8000
HANG_S = 3.0
STRANGER_S = 6.0
RUNTIMES = {"a": "/opt/vllm-a", "b": "/opt/vllm-b"}  # one for each checkpoint, so that one can be deleted


@dataclass(frozen=True)
class Scene:
    """What a fault may need to know: the process at the fault point, and the two releases."""

    pid: int
    old: str
    new: str


Act = Callable[[Ground, Scene], None]


def nothing(ground: Ground, scene: Scene) -> None:
    """No fault, or one that the release itself brings."""


@dataclass(frozen=True)
class Fault:
    """One class of faults.

    title: what is broken, for people
    strike, mend: do it; take it away again, where it lasts
    deadly: the process at the fault point is gone
    lasting: the host can't write down how it ended until it is mended
    limit_s: within so long after the fault tokens of the old or the new release flow again and the switch has ended
    spares_new: it breaks what the old release needs, and nothing of the new one's, so they must not share it
    clock_s: seconds by which the process's clock steps at the fault point, instead of stopping there
    """

    title: str
    strike: Act = nothing
    mend: Act = nothing
    deadly: bool = False
    lasting: bool = False
    limit_s: float = 30.0
    spares_new: bool = False
    clock_s: float = 0.0


# Processes


def kill(ground: Ground, scene: Scene) -> None:
    ground.signal("KILL", scene.pid)


def kill_beside_a_stubborn_child(ground: Ground, scene: Scene) -> None:
    """A hook that ignores SIGTERM outlives the transaction: what is left in its unit must not hold the recovery up."""
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


def tear(ground: Ground, scene: Scene) -> None:
    """The process dies in the middle of writing its next entry."""
    _write_half_a_line(ground)
    kill(ground, scene)


def tear_and_cut_power(ground: Ground, scene: Scene) -> None:
    _write_half_a_line(ground)
    power_cut(ground, scene)


def _write_half_a_line(ground: Ground) -> None:
    with (ground.outside(STATE) / "journal.jsonl").open("ab") as file:
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
    """What a file system does by itself after an error, whoever has files open on it."""
    assert ground.disk is not None
    disks.fail(ground.disk.mount(ground.host.place))


def check_disk_and_boot(ground: Ground, scene: Scene) -> None:
    assert ground.disk is not None
    ground.host.power_cut()
    disks.repair(ground.disk, ground.host.place)
    ground.host.start()


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


_TAKE_PORT = """
import socket, sys, time
end = time.monotonic() + 60
taken = socket.socket()
taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
while time.monotonic() < end:
    try:
        taken.bind(("127.0.0.1", int(sys.argv[1])))
        break
    except OSError:
        time.sleep(0.0005)
taken.listen()
time.sleep(float(sys.argv[2]))
"""


def take_port(ground: Ground, scene: Scene) -> None:
    """A stranger waits for the port to be free, and keeps it for a while."""
    unit = "--unit=stranger"
    words = [
        "systemd-run",
        unit,
        "--collect",
        "--quiet",
        "python3",
        "-c",
        _TAKE_PORT,
        str(PORT),
        str(STRANGER_S),
    ]
    ground.inside(*words)


def leave_port(ground: Ground, scene: Scene) -> None:
    ground.inside("systemctl", "stop", "stranger.service", check=False)


# People


class Stolen(AssertionError):
    """A lock that was held did not hold."""


def second_operator(ground: Ground, scene: Scene) -> None:
    """Somebody else orders another switch of the same service, past the unit's name."""
    order = ground.order(scene.old, operator="bob@elsewhere", purpose=ROLLBACK)
    ground.write("/run/second.json", json.dumps(order.as_dict()))
    said = ground.inside(
        "sh", "-c", f"python3 {ROOT}/bin/on-host.pyz switch /run/second.json 2>&1; echo status $?"
    )
    if "faults@test has held this service since" not in said or "status 1" not in said:
        raise Stolen(f"a second switch was not refused: {said}")


def recovery_beside(ground: Ground, scene: Scene) -> None:
    """Somebody runs `recover` by hand while a switch is under way."""
    said = ground.inside("sh", "-c", f"python3 {ROOT}/bin/on-host.pyz recover 2>&1; echo status $?")
    if "has held this service since" not in said:
        raise Stolen(f"recovery did not leave a live switch alone: {said}")


def leave_lock(text: str) -> Act:
    """The process dies, and the lock file says something that nobody can rely on."""

    def strike(ground: Ground, scene: Scene) -> None:
        (ground.outside(STATE) / "lock").write_text(text)
        kill(ground, scene)

    return strike


def both(first: Act, then: Act) -> Act:
    def strike(ground: Ground, scene: Scene) -> None:
        first(ground, scene)
        then(ground, scene)

    return strike


# The cable


def cut_cable(ground: Ground, scene: Scene) -> None:
    ground.host.cut_link()


def plug_in(ground: Ground, scene: Scene) -> None:
    ground.host.restore_link()


def _damaged(which: str, how: str, act: Callable[[Path], None]) -> Fault:
    strike, mend = damage(which, act)
    title = f"checkpoint of the {which} release {how}"
    return Fault(title, strike, mend, spares_new=which == "old")


def _no_runtime(which: str) -> Fault:
    strike, mend = delete_runtime(which)
    title = f"runtime of the {which} release deleted"
    return Fault(title, strike, mend, spares_new=which == "old")


_delete_old, _lay_old_back = damage("old", Path.unlink)

FAULTS: dict[str, Fault] = {
    "kill": Fault("SIGKILL of the transaction", kill, deadly=True),
    "stubborn-child": Fault(
        "SIGKILL beside a child that ignores SIGTERM", kill_beside_a_stubborn_child, deadly=True
    ),
    "no-way-back": Fault(
        "checkpoint of the old release deleted, and a power cut",
        both(_delete_old, power_cut),
        _lay_old_back,
        deadly=True,
        limit_s=120,
        spares_new=True,
    ),
    "kill-children": Fault("SIGKILL of the transaction's children, for 1.5 s", kill_children),
    "power": Fault("power cut and boot", power_cut, deadly=True),
    "torn": Fault("SIGKILL in the middle of a journal line", tear, deadly=True),
    "torn-power": Fault("power cut in the middle of a journal line", tear_and_cut_power, deadly=True),
    "full": Fault("disk full", fill, empty, lasting=True),
    "read-only": Fault(
        "file system read-only after an error", make_read_only, check_disk_and_boot, lasting=True
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
    "port": Fault(f"port taken by another program for {STRANGER_S:.0f} s", take_port, leave_port, limit_s=90),
    "clock-ahead": Fault("clock steps 5 h ahead", clock_s=5 * 3600),
    "clock-back": Fault("clock steps 5 h back", clock_s=-5 * 3600),
    "second-operator": Fault("a second operator's switch", second_operator),
    "second-recovery": Fault("recovery by hand beside it", recovery_beside),
    "stale-lock": Fault(
        "SIGKILL; lock file of a dead holder", leave_lock('{"holder": "ghost", "pid": 1}'), deadly=True
    ),
    "torn-lock": Fault("SIGKILL; lock file without a readable holder", leave_lock('{"hol'), deadly=True),
    "cable": Fault("cable cut, and back when the switch has ended", cut_cable, plug_in),
    "itself": Fault("the release's own fault", limit_s=120),
}
