"""A run over hosts of the lab that are as declared: ours against one no-op operation of pyinfra, and against
ansible-core with pipelining and a playbook that makes sure of the same.

    on_lab.py [--hosts 10] [--rounds 7]

All three take turns in each round; ratios are taken within a round. Ends with 1 where a target is missed.
Nothing else should run beside it; hosts and control machine share this machine's cores.
"""

from __future__ import annotations

import argparse
import base64
import compileall
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests/lab"))

from lab import control, light_runtime, session  # noqa: E402
from lab.layout import OPERATOR  # noqa: E402
from lab.machine import Host  # noqa: E402

# Newest of the field's common tool when this was written; installed beside the cache, not into our venv.
ANSIBLE = "ansible-core==2.19.4"
LEAST_TIMES_FASTER, MOST_TIMES_BARE = 8.0, 2.0
RECOVERY = tuple(
    f"pyinfra-vllm-recover{end}" for end in (".service", "@.service", "-due.service", "-due.timer")
)
UNIT = "/etc/systemd/system/vllm-tiny.service"


def ansible(folder: Path) -> Path:
    """The folder of Ansible's programs, in a venv of its own."""
    import uv

    venv = folder / "ansible"
    subprocess.run([uv.find_uv_bin(), "venv", "-q", "--python", sys.executable, venv], check=True)
    command = [uv.find_uv_bin(), "pip", "install", "-q", "--python", venv / "bin/python", ANSIBLE]
    subprocess.run(command, check=True)
    return venv / "bin"


def playbook(lab: session.Lab, hosts: Sequence[Host], folder: Path) -> Callable[[], str]:
    """Prepares the playbook with the files that our own rollout laid down; returns what runs it."""
    programs = ansible(folder)
    first = hosts[0]

    def fetch(path: str) -> None:
        (folder / Path(path).name).write_bytes(base64.b64decode(first.ssh(f"base64 {path}").stdout))

    program = first.ssh("readlink /srv/pyinfra-vllm/bin/on-host.pyz").stdout.strip()
    for path in (
        f"/srv/pyinfra-vllm/bin/{program}",
        UNIT,
        *(f"/etc/systemd/system/{name}" for name in RECOVERY),
    ):
        fetch(path)
    release = json.loads(first.ssh("cat /srv/pyinfra-vllm/tiny/current/release.json").stdout)
    known = {
        "files": str(folder), "program": program, "recovery": list(RECOVERY),
        "unit": first.ssh(f"realpath {UNIT}").stdout.strip(), "runtime": release["runtime"]["path"],
        "checkpoint": release["checkpoint"]["directory"], "least_bytes": 1,
        "ansible_user": OPERATOR, "ansible_ssh_private_key_file": str(lab.key),
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={lab.known_hosts} -o StrictHostKeyChecking=yes",
    }  # fmt: skip
    listed = {host.name: {"ansible_host": host.address} for host in hosts}
    inventory = folder / "inventory.json"
    inventory.write_text(json.dumps({"all": {"hosts": listed, "vars": known}}))
    env = {
        **os.environ, "ANSIBLE_PIPELINING": "1", "ANSIBLE_FORKS": str(len(hosts)), "NO_COLOR": "1",
        "ANSIBLE_HOME": str(folder / "home"), "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),
    }  # fmt: skip
    command = [str(programs / "ansible-playbook"), "-i", str(inventory), str(HERE / "playbook.yml")]

    def run() -> str:
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def ours(*words: str) -> str:
    done = control.deploy(*words, env=control.declared("a", **light_runtime.SETTINGS))
    assert done.returncode == 0, done.stderr
    return done.stderr


def bare(elsewhere: Path) -> str:
    """In a folder of its own, as our project's config.py is no part of pyinfra."""
    command = ["pyinfra", str(control.CHECKOUT / control.INVENTORY), str(HERE / "bare.py"), "-y"]
    env = control.environment()
    done = subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def timed(act: Callable[[], str]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def measure(hosts: int, rounds: int) -> list[tuple[float, float, float]]:
    with (
        session.lab(light=True) as lab,
        control.own_lock_file(),
        tempfile.TemporaryDirectory() as folder,
    ):
        added = lab.add(*(f"h{number}" for number in range(1, hosts + 1)), timeout=300)
        assert control.pyinfra_vllm("lock", control.INVENTORY).returncode == 0
        # as an installed package has it; pyinfra itself writes none
        compileall.compile_dir(control.CHECKOUT / "src", quiet=1)
        ours()
        by_playbook = playbook(lab, added, Path(folder))
        same(by_playbook, added[0])
        elsewhere = Path(folder, "elsewhere")
        elsewhere.mkdir()
        found = []
        for number in range(rounds):
            times = timed(ours), timed(lambda: bare(elsewhere)), timed(by_playbook)
            found.append(times)
            print(f"{number + 1}: {line(*times)}", flush=True)
        return found


def same(by_playbook: Callable[[], str], host: Host) -> None:
    """Both find nothing to change, and both find a unit of the recovery that was changed by hand."""
    told = by_playbook()
    assert "changed=0" in told and "changed=1" not in told, told
    host.ssh(f"echo '# by hand' >> /etc/systemd/system/{RECOVERY[0]}")
    assert "changed=1" in by_playbook()
    host.ssh(f"echo '# by hand' >> /etc/systemd/system/{RECOVERY[0]}")
    ours()
    assert "by hand" not in host.ssh(f"cat /etc/systemd/system/{RECOVERY[0]}").stdout
    assert "changed=1" not in by_playbook()


def line(own: float, least: float, other: float) -> str:
    return (
        f"ours {own:.2f} s, bare pyinfra {least:.2f} s ({own / least:.2f} times),"
        f" ansible {other:.1f} s ({other / own:.1f} times ours)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    found = measure(**vars(parser.parse_args()))
    slower = [own / least for own, least, _ in found]
    faster = [other / own for own, _, other in found]
    print(
        f"median {statistics.median(slower):.2f} times bare pyinfra ({min(slower):.2f} to"
        f" {max(slower):.2f}; at most {MOST_TIMES_BARE}),"
        f" {statistics.median(faster):.1f} times faster than ansible"
        f" ({min(faster):.1f} to {max(faster):.1f}; at least {LEAST_TIMES_FASTER})"
    )
    return int(statistics.median(slower) > MOST_TIMES_BARE or statistics.median(faster) < LEAST_TIMES_FASTER)


if __name__ == "__main__":
    sys.exit(main())
