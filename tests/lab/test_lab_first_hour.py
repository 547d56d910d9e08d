"""The first hour as docs/first-hour.md tells it: its commands, typed in an empty folder, up to a release that
serves.

`PYINFRA_VLLM_FIRST_HOUR=FILE` keeps the transcript, from which the page is written.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import control, packages, venvs
from lab.layout import OPERATOR
from lab.machine import Host
from lab.session import Lab

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
    IdentityFile {key}
    UserKnownHostsFile {known_hosts}
"""


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    yield lab.add(HOST)[0]
    lab.remove(HOST)


@pytest.fixture
def person(lab: Lab, host: Host, tmp_path: Path) -> dict[str, str]:
    """Somebody with a home, uv, and access to the host; nothing of this checkout's environment."""
    home, programs = tmp_path / "home", tmp_path / "home/.local/bin"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    programs.mkdir(parents=True)
    known = home / ".ssh/known_hosts"
    shutil.copy(lab.known_hosts, known)
    words = {"host": HOST, "address": host.address, "user": OPERATOR, "key": lab.key, "known_hosts": known}
    config = home / ".ssh/config"
    config.write_text(SSH_CONFIG.format(**words))
    (programs / "uv").symlink_to(Path(sys.executable).with_name("uv"))
    # OpenSSH looks into the account's home, whatever HOME is.
    (programs / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {config} "$@"\n')
    (programs / "ssh").chmod(0o755)
    kept = {"HOME": str(home), "PATH": f"{programs}:/usr/bin:/bin", "LANG": "C.UTF-8", "COLUMNS": "80"}
    return {**kept, **packages.for_uv(), "HF_ENDPOINT": lab.hub.url, "UV_PYTHON": sys.base_prefix}


def test_ten_commands_lead_from_an_empty_folder_to_a_release_that_serves(
    host: Host, person: dict[str, str], tmp_path: Path
) -> None:
    assert 0 < len(COMMANDS) <= 10
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "pyinfra-vllm").symlink_to(control.CHECKOUT)
    settings = {"runtime": str(venvs.path()), "package": venvs.package()}
    (folder / "this-host.py").write_text(THIS_HOST.format(**settings))
    transcript = []
    for command in COMMANDS:
        if command.startswith("cd "):
            folder = folder / command.removeprefix("cd ")
            transcript.append(f"$ {command}")
            continue
        done = subprocess.run(
            ["sh", "-c", f"{command} 2>&1"],
            cwd=folder, env=person, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900,
            check=False,
        )  # fmt: skip
        transcript.append(f"$ {command}\n{done.stdout}")
        assert done.returncode == 0, "\n".join(transcript)
    if kept := os.environ.get("PYINFRA_VLLM_FIRST_HOUR"):
        Path(kept).write_text("\n".join(transcript))
    assert re.search(r"\bok\b.*chat|chat.*\bok\b", transcript[-1]), transcript[-1]
    ask = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/v1/models').read())"
    answer = host.ssh(f'python3 -c "{ask}"').stdout
    assert "lab/good-a" in answer
