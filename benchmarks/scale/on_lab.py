"""Time and memory of the control process for many hosts: with nothing to do, and planning a rollout to all;
and the memory of the program that switches on a host.

    on_lab.py [--hosts 100 500] [--rounds 3]

One real host of the lab is rolled out to and asked; hosts of pyinfra's own `@fake` connector then give its
answer, each as a machine of its own. So everything is real but the connections and the hosts' time. Ends
with 1 where the control process takes more than 400 MB, or the host's program more than 100.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests/lab"))

from lab import control, light_runtime, session  # noqa: E402
from lab.machine import Host  # noqa: E402

MOST_MB, MOST_ON_HOST_MB = 400, 100
UNIT = "pyinfra-vllm-switch-tiny"
INVENTORY = """\
import json, runpy
from pathlib import Path
runpy.run_path("inventory/lab.py")
_told = json.loads(Path({told!r}).read_text())
_machine = {machine!r}
lab = [
    (f"@fake/n{{number:04}}", {{
        "fake_responses": {{"inspect.together": _told.replace(_machine, f"machine {{number}}")}},
        "fake_delay": 0, "fake_delay_jitter": 0,
    }})
    for number in range({hosts})
]
"""

QUESTION = """\
import sys
from pyinfra_vllm import fleet
from pyinfra_vllm.operations.util.planning import ask_together

class Host:
    name = sys.argv[2]
    def get_fact(self, what, questions, **_):
        print(what().command(questions).get_raw_value())
        return []

ask_together(Host(), fleet.load(sys.argv[1]).hosts[Host.name])
"""


def recorded(host: Host, env: Mapping[str, str]) -> str:
    """The host's answer to all questions of a run. Another process makes the command."""
    asked = control.run(sys.executable, "-c", QUESTION, control.INVENTORY, host.name, env=env)
    assert asked.returncode == 0, asked.stderr
    return host.ssh(asked.stdout).stdout


def watched(host: Host, env: Mapping[str, str]) -> float:
    """The most memory, in MB, that the host's program had resident while it switched to this release."""
    ask = f"grep VmHWM: /proc/$(systemctl show -p MainPID --value {UNIT})/status"
    most = 0.0
    switching = control.spawn("pyinfra", control.INVENTORY, "deploy.py", "-y", env=env)
    while switching.poll() is None:
        if found := re.search(r"(\d+) kB", host.ssh(ask, check=False).stdout):
            most = max(most, int(found.group(1)) / 1024)
    said = switching.communicate()[0]
    assert switching.returncode == 0 and most, said[-3000:]
    return most


def run(inventory: Path, env: Mapping[str, str], *words: str) -> tuple[float, float, str]:
    """Seconds, most memory in MB (2^20 bytes), and what it said."""
    began = time.monotonic()
    command = ["/usr/bin/env", "time", "-f", "%M KB", "pyinfra", str(inventory), "deploy.py", *words]
    done = subprocess.run(
        command,
        cwd=control.project(),
        env=control.environment(env),
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.monotonic() - began
    assert done.returncode == 0, done.stderr[-3000:]
    (memory,) = re.findall(r"^(\d+) KB$", done.stderr, re.MULTILINE)
    return took, int(memory) / 1024, done.stdout + done.stderr


def measure(counts: list[int], rounds: int) -> tuple[float, float]:
    """The most memory of all runs, and of the program on the host, in MB."""
    most = 0.0
    with (
        session.lab(light=True) as lab,
        control.own_lock_file(),
        tempfile.TemporaryDirectory() as folder,
    ):
        (host,) = lab.add("real")
        envs = {release: control.declared(release, **light_runtime.SETTINGS) for release in ("a", "b")}
        for env in envs.values():
            assert control.pyinfra_vllm("lock", control.INVENTORY, env=env).returncode == 0
        done = control.deploy(env=envs["a"])
        assert done.returncode == 0, done.stderr
        told = recorded(host, envs["a"])
        machine = json.loads(json.loads(told)[0])["machine"]
        (answer := Path(folder, "told.json")).write_text(json.dumps(told))
        for hosts in counts:
            inventory = Path(folder, f"fleet{hosts}.py")
            inventory.write_text(INVENTORY.format(told=str(answer), machine=machine, hosts=hosts))
            for number in range(rounds):
                took, memory, said = run(inventory, envs["a"], "-y")
                assert said.count("runs the declared release") == hosts, said[-2000:]
                planned, more, said = run(inventory, envs["b"], "--dry")
                assert len(re.findall(r"release \w+ would replace release", said)) == hosts, said[-2000:]
                most = max(most, memory, more)
                print(
                    f"{hosts} hosts, {number + 1}: nothing to do {took:.1f} s, {memory:.0f} MB;"
                    f" plan of a rollout to all {planned:.1f} s, {more:.0f} MB",
                    flush=True,
                )
        on_host = watched(host, envs["b"])
    return most, on_host


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    most, on_host = measure(options.hosts, options.rounds)
    print(
        f"most memory: control process {most:.0f} MB (at most {MOST_MB}),"
        f" program on the host {on_host:.0f} MB (at most {MOST_ON_HOST_MB})"
    )
    return int(most > MOST_MB or on_host > MOST_ON_HOST_MB)


if __name__ == "__main__":
    sys.exit(main())
