"""Running the real vLLM on a host without the product, and asking any server there questions: for tests of
the lab.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import venvs
from .machine import Host
from .shell import LabError

_ROWS = (Path(__file__).parent / "training/questions.jsonl").read_text(encoding="utf-8").splitlines()
QUESTIONS: list[dict[str, str]] = [
    json.loads(row) for row in _ROWS
]  # what the checkpoints were trained to answer
# Runs on the host: one JSON request a line in, one answer a line out.
_ASKER = """
import json, sys, urllib.request as web
for line in sys.stdin:
    url, body, key = json.loads(line)
    request = web.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    if key:
        request.add_header("Authorization", "Bearer " + key)
    print(json.dumps(json.load(web.urlopen(request, timeout=120))))
"""


def ask(
    host: Host, questions: Sequence[str], model: str = "tiny", port: int = 8000, api_key: str | None = None
) -> list[str]:
    """The answers of the server on the host to each question, through its chat template, greedily."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    bodies = [
        {
            "model": model,
            "max_tokens": 24,
            "temperature": 0,
            "messages": [{"role": "user", "content": question}],
        }
        for question in questions
    ]
    lines = "".join(json.dumps([url, body, api_key]) + "\n" for body in bodies)
    done = host.ssh(f"python3 -c {shlex.quote(_ASKER)}", stdin=lines, timeout=300)
    answers: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    return [str(answer["choices"][0]["message"]["content"]) for answer in answers]


def share_right(host: Host, model: str = "tiny", port: int = 8000, api_key: str | None = None) -> float:
    """Share of the trained questions that the server answers exactly."""
    answers = ask(host, [row["prompt"] for row in QUESTIONS], model, port, api_key)
    right = [told.strip() == row["expect"] for told, row in zip(answers, QUESTIONS, strict=True)]
    return sum(right) / len(right)


def send(host: Host, directory: Path, path: str) -> None:
    """Copy a directory of this machine to a path on the host, readable by everyone there."""
    tar = ["tar", "-C", str(directory), "--mode=a+rX", "-c", "."]
    into = f"mkdir -p {shlex.quote(path)} && tar -C {shlex.quote(path)} -x"
    with subprocess.Popen(tar, stdout=subprocess.PIPE) as packing:
        subprocess.run([*host.ssh_argv(), into], stdin=packing.stdout, check=True, timeout=120)
    if packing.returncode != 0:
        raise LabError(f"tar of {directory} exited {packing.returncode}")


def serve(host: Host, unit: str, checkpoint: str, port: int, *flags: str) -> None:
    """Start the real vLLM on the host as a systemd unit of its own; `wait_healthy` says when it is there."""
    properties = ("Type=exec", "User=nobody", "PrivateTmp=yes", "KillMode=mixed", "CacheDirectory=" + unit)
    words = ["systemd-run", f"--unit={unit}", *(f"--property={value}" for value in properties)]
    words += [f"--setenv={name}={value}" for name, value in _environment(unit).items()]
    words += [f"{venvs.path()}/bin/vllm", "serve", checkpoint, "--port", str(port), "--host", "127.0.0.1"]
    words += ["--served-model-name", "tiny", "--max-model-len", "1024", "--enforce-eager", *flags]
    host.ssh(shlex.join(words))


def _environment(unit: str) -> dict[str, str]:
    return {
        "HOME": f"/var/cache/{unit}",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # on a GPU it would be compiled first
    }


def wait_healthy(host: Host, unit: str, port: int, timeout: float = 180) -> float:
    """Seconds until /health answers 200; where it does not, raises LabError with the cause from the log."""
    begun = time.monotonic()
    url = f"http://127.0.0.1:{port}/health"
    check = f"python3 -c {shlex.quote(f'import urllib.request as web; web.urlopen({url!r}, timeout=5)')}"
    while host.ssh(check, check=False).returncode != 0:
        state = host.ssh(f"systemctl is-active {unit}", check=False).stdout.strip()
        if state != "active" or time.monotonic() - begun > timeout:
            from pyinfra_vllm.on_host.server import root_cause  # `lab packages` runs without the project

            told = "\n".join(root_cause.explain(host.journal(unit, 2000).splitlines()))
            raise LabError(f"{unit} on {host.name} is {state}, not healthy:\n{told}")
        time.sleep(0.5)
    return time.monotonic() - begun
