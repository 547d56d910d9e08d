"""Who attacks: another user of the host, and the code that runs in the server after somebody has taken it
over.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import shlex
import subprocess
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lab import control, light_runtime
from lab.machine import Host

ROOT = "/srv/pyinfra-vllm"
SERVICE = f"{ROOT}/tiny"
UNIT = "vllm-tiny.service"
PORT = 8000
_SOURCES = """
import hashlib, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as packed:
    names = sorted(name for name in packed.namelist() if not name.endswith(".pyc"))
    print(hashlib.sha256(b"".join(name.encode() + packed.read(name) for name in names)).hexdigest())
"""
PLACE = "/opt/attack"  # what attackers run and write; anybody may read and write there
MALLORY = "mallory"
KEY = f"attacked{secrets.token_hex(12)}"


@dataclass(frozen=True)
class Attacked:
    """A host that serves release a with a key, and a local user who means harm."""

    host: Host
    releases: list[str] = field(default_factory=list)  # the id of release a

    def deploy(
        self, release: str = "a", runtime: Mapping[str, str] | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        declared = {
            **light_runtime.SETTINGS,
            **({"runtime": runtime} if runtime else {}),
            "secrets": {"VLLM_API_KEY": "ATTACKED_API_KEY"},
            "environment": {"VLLM_CPU_KVCACHE_SPACE": "1", **environment},
        }
        env = {**control.declared(release, **declared), "ATTACKED_API_KEY": KEY}
        words = ("deploy.py", "-y", "--limit", self.host.name, "--data", "retry_rejected=true")
        return control.pyinfra(*words, env=env)

    def deployed(self, release: str = "a", **environment: str) -> None:
        """Raises where that does not succeed."""
        done = self.deploy(release, None, **environment)
        assert done.returncode == 0, done.stderr[-4000:]

    def sources(self, program: str) -> str:
        """The sum of an installed program's sources; the host adds byte code beside them."""
        return self.sh(f"python3 -I -c {shlex.quote(_SOURCES)} {program}")

    def sh(self, command: str, check: bool = True) -> str:
        return self.host.ssh(command, check=check).stdout.strip()

    def on_host(self, code: str) -> Any:
        """The JSON that the code prints, run by root with our own modules there."""
        start = f"import json, sys; sys.path.insert(0, '{ROOT}/bin/on-host.pyz')\n"
        return json.loads(self.host.ssh("python3 -I -", stdin=start + code).stdout)

    def status(self) -> dict[str, Any]:
        (found,) = json.loads(self.sh(f"python3 {ROOT}/bin/on-host.pyz status tiny"))
        return dict(found)

    def outcome(self) -> tuple[str, str]:
        """How the newest transaction ended, and why."""
        last = self.status()["last"]
        return str(last["outcome"]), str(last["reason"])

    def main_pid(self) -> str:
        return self.sh(f"systemctl show -P MainPID {UNIT}")

    def put(self, name: str, text: str) -> str:
        """A file that attackers use; returns its path."""
        self.host.ssh(f"cat > {PLACE}/{name} && chmod 755 {PLACE}/{name}", stdin=text)
        return f"{PLACE}/{name}"

    @contextmanager
    def running(
        self, name: str, code: str, *words: str, user: str = MALLORY, wait_for: str = ""
    ) -> Iterator[str]:
        """Run Python as that user while the block runs; yields the file that its output goes to.

        wait_for: a line of its output that must be there before the block begins
        """
        script = self.put(f"{name}.py", code)
        said = f"{PLACE}/{name}.said"
        run = [
            "systemd-run",
            "--quiet",
            "--collect",
            f"--unit=attack-{name}",
            f"-pUser={user}",
            f"-pStandardOutput=file:{said}",
        ]
        self.sh(
            f"rm -f {said}; {shlex.join([*run, f'-pStandardError=file:{said}', 'python3', '-u', script, *words])}"  # noqa: E501
        )
        try:
            if wait_for:
                self.until(f"grep -q {shlex.quote(wait_for)} {said}")
            yield said
        finally:
            self.sh(f"systemctl stop attack-{name}", check=False)

    def until(self, command: str, timeout_s: float = 20) -> None:
        """Wait until the shell command succeeds."""
        deadline = time.monotonic() + timeout_s
        while self.host.ssh(command, check=False).returncode:
            assert time.monotonic() < deadline, (
                f"{command} did not become true: {self.sh(f'tail -n 20 {PLACE}/*.said', check=False)}"
            )
            time.sleep(0.2)

    def inside(self, code: str, *words: str) -> str:
        """The output of Python code that runs as the server's user in the unit's namespaces and
        control group.
        """
        script = self.put("inside.py", code)
        pid = self.main_pid()
        groups = (
            f"for group in $(find /sys/fs/cgroup -path '*/system.slice/{UNIT}/cgroup.procs'); do echo $$ >"
            " $group; done 2>/dev/null"
        )
        enter = f"nsenter --target {pid} --mount --ipc --net --uts --wd=/proc/{pid}/cwd"
        drop = "setpriv --reuid=vllm --regid=vllm --clear-groups --no-new-privs --bounding-set=-all"
        command = (
            f"{groups}; {enter} {drop} env -i $(tr '\\0' '\\n' < /proc/{pid}/environ | grep -v ' ' | xargs)"
            f" python3 -u {script} {shlex.join(words)}"
        )
        return self.sh(command)


def sources(program: bytes) -> str:
    """The sum of a program's sources as `Attacked.sources` tells it."""
    with zipfile.ZipFile(io.BytesIO(program)) as packed:
        names = sorted(name for name in packed.namelist() if not name.endswith(".pyc"))
        return hashlib.sha256(b"".join(name.encode() + packed.read(name) for name in names)).hexdigest()
