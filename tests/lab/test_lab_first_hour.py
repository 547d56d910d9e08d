"""The first hour as docs/first-hour.md tells it: its commands, typed in an empty folder of a machine that
nobody has used, up to a release that serves.

`PYINFRA_VLLM_FIRST_HOUR=FILE` keeps the transcript, from which the page is written.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
from lab import cgroups, control, image, packages, venvs
from lab.layout import MACHINE_PREFIX, OPERATOR
from lab.machine import Host
from lab.session import Lab
from lab.shell import run

PAGE = (control.CHECKOUT / "docs/first-hour.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    \$ (.+)$", PAGE, re.MULTILINE)
HOST = "gpu1"
# A host of the lab has no GPU, and a model of two layers.
THIS_HOST = """
window = []
services["chat"] |= {{
    "runtime": {{"path": {runtime!r}, "package": {package!r}}},
    "max_model_len": 2048,
    "flags": {{"enforce-eager": True}},
    "environment": {{"VLLM_CPU_KVCACHE_SPACE": "1"}},
    "gate": {{"budget_s": 20, "concurrency": [1, 8], "quality": False}},
}}
"""
SSH_CONFIG = """
Host {host}
    HostName {address}
    User {user}
    IdentityFile /root/.ssh/key
"""


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    yield lab.add(HOST)[0]
    lab.remove(HOST)


@dataclass
class Fresh:
    """A Debian that nobody has used, with `uv` and this repository; each command runs in its folder."""

    root: Path
    binds: Sequence[Path]
    environment: Mapping[str, str]
    folder: PurePosixPath

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        words = [
            *cgroups.entering("fresh"),
            *("systemd-nspawn", "--quiet", "--pipe", "--as-pid2", "--register=no"),
        ]
        words += [] if cgroups.systemd_here() else ["--keep-unit"]
        words += [f"--directory={self.root}", f"--machine={MACHINE_PREFIX}fresh", "--settings=no"]
        words += ["--resolv-conf=replace-host", "--timezone=off", "--link-journal=no"]
        words += [f"--bind-ro={path}" for path in self.binds]
        words += [f"--bind-ro={control.CHECKOUT}:/root/empty/pyinfra-vllm", f"--chdir={self.folder}"]
        words += [f"--setenv={name}={value}" for name, value in self.environment.items()]
        return subprocess.run(
            [*words, "sh", "-c", f"{command} 2>&1"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip


@pytest.fixture
def fresh(lab: Lab, host: Host, tmp_path: Path) -> Iterator[Fresh]:
    root = tmp_path / "fresh"
    run("cp", "-a", image.base(), root)
    shutil.copy(Path(sys.executable).with_name("uv"), root / "usr/local/bin/uv")
    (root / "root/empty/pyinfra-vllm").mkdir(parents=True)
    ssh = root / "root/.ssh"
    ssh.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(lab.known_hosts, ssh / "known_hosts")
    shutil.copy(lab.key, ssh / "key")
    (ssh / "config").write_text(SSH_CONFIG.format(host=HOST, address=host.address, user=OPERATOR))
    settings = {"runtime": str(venvs.path()), "package": venvs.package()}
    (root / "root/empty/this-host.py").write_text(THIS_HOST.format(**settings))
    where = packages.for_uv()
    programs = "/root/.local/bin:/usr/local/bin:/usr/bin:/bin"
    person = {"HOME": "/root", "PATH": programs, "LANG": "C.UTF-8", "COLUMNS": "80"}
    person["HF_ENDPOINT"] = lab.hub.url
    yield Fresh(root, _here(where.values()), {**person, **where}, PurePosixPath("/root/empty"))
    cgroups.remove("fresh")
    run("rm", "-rf", "--one-file-system", root)


def _here(settings: Iterable[str]) -> list[Path]:
    """The local paths in uv's settings, which the fresh machine must see: packages and certificates."""
    words = [word for value in settings for word in re.split(r"[ ,]", value)]
    # An index in a folder may name files beside that folder.
    paths = [
        Path(word.removeprefix("file://")).parent if word.startswith("file://") else Path(word)
        for word in words
    ]
    return [path for path in dict.fromkeys(paths) if path.is_absolute() and path.exists()]


def test_ten_commands_lead_from_an_empty_folder_to_a_release_that_serves(host: Host, fresh: Fresh) -> None:
    assert 0 < len(COMMANDS) <= 10
    transcript = []
    for command in COMMANDS:
        if command.startswith("cd "):
            fresh.folder /= command.removeprefix("cd ")
            transcript.append(f"$ {command}")
            continue
        done = fresh.run(command)
        transcript.append(f"$ {command}\n{done.stdout}")
        assert done.returncode == 0, "\n".join(transcript)
    if kept := os.environ.get("PYINFRA_VLLM_FIRST_HOUR"):
        Path(kept).write_text("\n".join(transcript))
    assert re.search(r"\bok\b.*chat|chat.*\bok\b", transcript[-1]), transcript[-1]
    ask = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/v1/models').read())"
    answer = host.ssh(f'python3 -c "{ask}"').stdout
    assert "lab/good-a" in answer
