"""Many hosts that serve the same two releases: staged once by real `pyinfra` runs, then copied from host to
host.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import control, light_runtime, runtime
from lab.disk import Disk
from lab.session import Lab
from lab.shell import LabError, run, say

from .breaking import RUNTIMES
from .ground import ENGINE, NO_START, ROOT, STATE, Ground

STOP_S = 1  # before the unit's own 30 s for what hangs in its stop
COMMON = {"VLLM_CPU_KVCACHE_SPACE": "1", "LIGHT_TOKEN_S": "0.02", "LIGHT_NO_START_FILE": NO_START}
# One process less to start, and none that spins for a second after each request: two cores carry three
# servers so.
REAL = {
    "flags": {"enforce-eager": True, "distributed-executor-backend": "uni"},
    "environment": {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
}
# The first card of the host: a stand-in.
STANDBY = {"LIGHT_KERNEL": "Machete", "NCCL_NVLS_ENABLE": "0", "LIGHT_ENGINE_FILE": ENGINE}
CLOSED = [{"cron": "0 3 1 1 *", "duration": "1h", "timezone": "Asia/Tokyo"}]
ACCOUNTS = ("passwd", "shadow", "group", "gshadow")
# What a test calls a release -> the checkpoint, and how the stub misbehaves.
RELEASES: dict[str, tuple[str, dict[str, str]]] = {
    "a": ("a", {}),
    "b": ("b", {}),
    "slow-kernel": ("b", {"LIGHT_KERNEL": "slow"}),
    "slower": ("b", {"LIGHT_TOKEN_S": "0.1"}),
    "crashes": ("b", {"LIGHT_CRASH_AFTER_S": "2"}),
    "exits": ("b", {"LIGHT_EXIT_AFTER_S": "2"}),
    "hangs-start": ("b", {"LIGHT_HANG": "start"}),
    "hangs-stop": ("b", {"LIGHT_HANG": "stop"}),
    "silent": ("b", {"LIGHT_SILENT": "1"}),
}


def declared(name: str, ground: Ground, **settings: Any) -> dict[str, str]:
    """The environment that makes group_data/lab.py declare a release by its name here, as that
    host takes it.
    """
    checkpoint, how = RELEASES[name]
    values: dict[str, Any] = {
        "runtime": {"path": RUNTIMES[checkpoint], "package": "vllm-cpu"},
        "shutdown_timeout_s": STOP_S,
        "gate": ground.gate,
        **settings,
    }
    asleep = STANDBY if ground.standby else {}
    stub = {"ready_timeout_s": 60, "environment": {**COMMON, **asleep, **how}}
    values |= REAL if ground.real else stub
    values |= {"standby": True, "gpus": [0]} if ground.standby else {}
    return {"PYINFRA_VLLM_LAB_RELEASE": checkpoint, "PYINFRA_VLLM_LAB_SETTINGS": json.dumps(values)}


def deploy(name: str, ground: Ground, **settings: Any) -> None:
    """An ordinary run to its end. Raises where it did not end well."""
    environment = declared(name, ground, **settings)
    done = control.pyinfra("deploy.py", "-y", "--limit", ground.host.name, env=environment)
    if done.returncode:
        raise LabError(f"pyinfra on {ground.host.name} exited {done.returncode}:\n{done.stderr[-3000:]}")


@contextmanager
def fleet(
    lab: Lab,
    plain: int,
    small: int,
    names: tuple[str, ...],
    real: bool = False,
    standby: bool = False,
) -> Iterator[list[Ground]]:
    """So many hosts, and so many more whose root is a small disk of its own, with these releases staged,
    watched.
    """
    disk = Disk(ROOT, 1024 if real else 64, journal=True)
    letters = "st" if standby else "fd"
    hosts = [f"{letters[0]}{number}" for number in range(plain)]
    others = [f"{letters[1]}{number}" for number in range(small)]
    grounds = [Ground(host) for host in lab.add(*hosts)] + [
        Ground(host, disk) for host in lab.add(*others, disks=[disk])
    ]
    for ground in grounds if real else ():
        ground.real, ground.ready_timeout_s = True, 120.0
    for ground in grounds if standby else ():
        ground.standby = True
        ground.card()
    try:
        with control.own_lock_file(), ThreadPoolExecutor(len(grounds)) as pool:
            list(pool.map(_prepare, grounds))
            _stage(grounds[0], names)
            list(pool.map(lambda ground: _copy(grounds[0], ground), grounds[1:]))
            list(pool.map(_learn, grounds))
            yield grounds
    finally:
        for ground in grounds:
            ground.witness.end()
        lab.remove(*hosts, *others)


def _prepare(ground: Ground) -> None:
    """A runtime for each checkpoint, so that one can be deleted without the other.

    The real one's 3.5 GB of packages are shared.
    """
    ground.install_hook()
    here = runtime.PATH if ground.real else light_runtime.PATH
    for place in RUNTIMES.values():
        ground.inside("mkdir", place)
        ground.inside("cp", "-a", f"{here}/bin", f"{here}/pyvenv.cfg", place)
        ground.inside("ln", "-s", f"{here}/lib", f"{place}/lib")
        ground.inside("sed", "-i", f"1s|{here}|{place}|", f"{place}/bin/vllm")


def _stage(seed: Ground, names: tuple[str, ...]) -> None:
    for checkpoint in ("a", "b"):
        locked = control.pyinfra_vllm("lock", control.INVENTORY, env=declared(checkpoint, seed))
        if locked.returncode:
            raise LabError(locked.stderr)
    deploy("a", seed)
    seed.releases["a"] = seed.current()
    for name in names:
        before = _staged(seed)
        deploy(name, seed, window=CLOSED)
        (seed.releases[name],) = _staged(seed) - before
    say(f"staged {', '.join(seed.releases)}")


def _staged(ground: Ground) -> set[str]:
    return {path.name for path in (ground.outside(STATE) / "releases").iterdir()}


def _copy(seed: Ground, ground: Ground) -> None:
    """The seed's accounts, units and state, modification times included; then the service
    starts from them.
    """
    for name in ACCOUNTS:
        shutil.copy(seed.host.root / "etc" / name, ground.host.root / "etc" / name)
    run("cp", "-a", f"{seed.outside(ROOT)}/.", _made(ground.outside(ROOT)))
    run(
        "sync", "--file-system", ground.outside(ROOT)
    )  # as staging does: a disk that fails at once must have it
    run("cp", "-a", f"{seed.host.root}/etc/systemd/system/.", ground.host.root / "etc/systemd/system")
    ground.releases = dict(seed.releases)
    ground.inside("systemctl", "daemon-reload")
    front = ("vllm-tiny-front.socket",) if ground.standby else ()
    ground.inside("systemctl", "start", *front, "vllm-tiny.service", "pyinfra-vllm-recover-due.timer")


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _learn(ground: Ground) -> None:
    """Note each checkpoint's answer, and the mounts while nothing happens."""
    ground.witness.begin(ground.supervisor)
    said = {"a": ground.witness.hear(20 * ground.patience)}
    ground.back(ground.releases["b"])
    said["b"] = ground.witness.hear(20 * ground.patience)
    assert None not in said.values(), said
    assert ground.real or said["a"] != said["b"], "the checkpoints can't be told apart by what they say"
    for name, release_id in ground.releases.items():
        ground.voices[release_id] = str(said[RELEASES[name][0]])
    ground.mounts = ground.look()["mounts"]
