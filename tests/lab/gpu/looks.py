"""Readings of a host that serves: memory, KV cache, the unit's exposure and devices, and outputs worth
keeping.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
from pathlib import Path
from typing import Any

from lab import device_policy, venvs
from lab.control import CHECKOUT
from lab.machine import Host

from pyinfra_vllm.on_host.inspect import gpus as inspect_gpus

ROOT = "/srv/pyinfra-vllm"
# Devices of this machine that hosts of the stories have and no server of theirs may open.
OTHER_DEVICES = tuple(
    path for path in map(Path, device_policy.OTHERS) if path.is_char_device() and path.name != "kmsg"
)
# What the product asks of nvidia-smi, so that a recorded answer can be given to it again.
QUESTIONS = (
    (f"--query-gpu={','.join(inspect_gpus.CARD)}", inspect_gpus.FORMAT),
    (f"--query-compute-apps={','.join(inspect_gpus.PROCESS)}", inspect_gpus.FORMAT),
    ("-L",),
    ("-q", "-x"),
)
_METRICS = "import urllib.request as web; print(web.urlopen('http://127.0.0.1:{}/metrics').read().decode())"


def exposure(host: Host, service: str) -> float:
    """`systemd-analyze security` of the service's unit."""
    text = host.ssh(f"systemd-analyze security --no-pager vllm-{service}.service").stdout
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", text)
    assert found, text[-500:]
    return float(found[1])


def opened(host: Host, service: str) -> dict[str, str]:
    """The result of opening devices from inside the unit's control group: `open`, or the error's name."""
    nodes = ["/dev/nvidiactl", "/dev/null", *map(str, OTHER_DEVICES)]
    return device_policy.opened(host, nodes, f"vllm-{service}.service")


def devices_are_guarded(host: Host, told: dict[str, str]) -> bool:
    """Whether the GPUs can be opened from inside the unit, and nothing else that the host has."""
    others = [str(path) for path in OTHER_DEVICES]
    outside = device_policy.opened(host, others)
    assert "open" in outside.values(), outside  # else nothing was refused by the unit
    return told["/dev/nvidiactl"] == "open" and all(told[node] == "EPERM" for node in others)


def kv_cache(host: Host, service: str) -> dict[str, Any]:
    """Predicted and the server's own tokens, as the newest switch recorded them."""
    entries = [json.loads(line) for line in _journal(host, service).splitlines()]
    found = [entry["kv_cache"] for entry in entries if "kv_cache" in entry][-1]
    predicted, measured = found["predicted"]["kv_tokens"], found["measured"].get("tokens")
    off = round(predicted / measured - 1, 4) if measured else None
    return {"predicted": predicted, "measured": measured, "off": off, "fit": found["predicted"]}


def memory(host: Host, service: str) -> list[dict[str, Any]]:
    """Each GPU of the service: MiB in use, and what its release was told to take of the card."""
    release = json.loads(host.ssh(f"cat {ROOT}/{service}/current/release.json").stdout)
    rows = host.ssh(
        "nvidia-smi --query-gpu=index,memory.total,memory.used --format=csv,noheader,nounits"
    ).stdout
    wanted = release.get("gpus")
    found = []
    for index, total, used in (map(int, row.split(",")) for row in rows.splitlines()):
        if wanted is None or index in wanted:
            predicted = round(total * _share(release["argv"]))
            found.append({"gpu": index, "total": total, "used": used, "predicted": predicted})
    return [{**row, "off": round(row["used"] / row["predicted"] - 1, 4)} for row in found]


def _share(argv: list[str]) -> float:
    """VLLM's own default where the release doesn't say (0.9 up to 0.25)."""
    words = [*argv, ""]
    return (
        float(words[words.index("--gpu-memory-utilization") + 1])
        if "--gpu-memory-utilization" in words
        else 0.9
    )


def newest_entries(host: Host, service: str) -> list[dict[str, Any]]:
    """The journal of the newest transaction."""
    entries = [json.loads(line) for line in _journal(host, service).splitlines()]
    return [entry for entry in entries if entry["tx"] == entries[-1]["tx"]]


def main_pid(host: Host, service: str) -> str:
    return host.ssh(f"systemctl show -P MainPID vllm-{service}").stdout.strip()


def version(host: Host) -> str:
    """Of the host's vLLM, without its build."""
    asked = f"from importlib.metadata import version; print(version('{venvs.package()}'))"
    return host.ssh(f'{venvs.path()}/bin/python -c "{asked}"').stdout.strip().partition("+")[0]


def running(host: Host, service: str) -> str | None:
    """The release that the process was started from."""
    (found,) = json.loads(host.ssh(f"python3 {ROOT}/bin/on-host.pyz status {service}").stdout)
    return None if found["running"] is None else str(found["running"])


def product() -> str:
    """A digest of the files of the product: stories with the same digest tried the same product."""
    folders = [path for name in ("src", "templates") for path in (CHECKOUT / name).rglob("*")]
    files = [path for path in folders if path.is_file() and path.suffix != ".pyc"]
    digest = hashlib.sha256()
    for path in sorted([*files, CHECKOUT / "deploy.py", CHECKOUT / "rollback.py"]):
        digest.update(f"{path.relative_to(CHECKOUT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def machine(host: Host) -> dict[str, Any]:
    """The host as the page's heading describes it."""
    rows = host.ssh(
        "nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader", check=False
    )
    return {
        "gpus": rows.stdout.splitlines(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "systemd": host.ssh("systemctl --version", check=False).stdout.splitlines()[:1],
    }


def record(host: Host, service: str, place: Path, name: str) -> None:
    """Keep what real tools said, to be made into fixtures: nvidia-smi, the server's log and metrics, journal
    and verdict.
    """
    asked = {
        " ".join(words): host.ssh(shlex.join(["nvidia-smi", *words]), check=False) for words in QUESTIONS
    }
    answers = {words: done.stdout for words, done in asked.items() if done.returncode == 0}
    (place / f"{name}-{service}-smi.json").write_text(json.dumps(answers, indent=1) + "\n")
    release = host.ssh(f"cat {ROOT}/{service}/current/release.json", check=False).stdout
    port = json.loads(release)["port"] if release else 0
    newest = f"$(ls -td {ROOT}/{service}/evidence/*/ | head -n 1)"
    for kind, command in {
        "metrics.txt": shlex.join(["python3", "-c", _METRICS.format(port)]),
        "service.log": f"journalctl --no-pager -o cat -u vllm-{service}",
        "switch.log": "journalctl --no-pager -o short-precise -u 'pyinfra-vllm-*'",
        "journal.jsonl": f"cat {ROOT}/{service}/journal.jsonl",
        "release.json": f"cat {ROOT}/{service}/current/release.json",
        **{f"{kept}.json": f"cat {newest}/{kept}.json" for kept in ("before", "after", "verdict", "turns")},
    }.items():
        done = host.ssh(command, check=False)
        if done.returncode == 0 and done.stdout:
            (place / f"{name}-{service}-{kind}").write_text(done.stdout)


def _journal(host: Host, service: str) -> str:
    return host.ssh(f"cat {ROOT}/{service}/journal.jsonl").stdout
