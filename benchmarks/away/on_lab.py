"""How long a service makes no tokens: in a switch to an equal release, against a plain `systemctl restart`.

    on_lab.py [--rounds 7] [--start 5]

A stub that takes so many seconds to start stands in the place of vLLM, so that what is compared is what a
switch adds. A client on the host asks for a token every 5 ms. Ends with 1 where the median is more than 1.02
times a restart.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/lab"))

from lab import control, light_runtime, session
from lab.machine import Host

MOST = 1.02
GAPS = "/run/gaps"
CLIENT = f"""
import json, time, urllib.request as web
body = json.dumps({{"model": "tiny", "prompt": "a", "max_tokens": 1}}).encode()
asked = web.Request("http://127.0.0.1:8000/v1/completions", body, {{"Content-Type": "application/json"}})
served, failed = time.monotonic(), False
while True:
    try:
        web.urlopen(asked, timeout=60).read()
        now = time.monotonic()
        if failed:
            print(now - served, file=open({GAPS!r}, "a"), flush=True)
        served, failed = now, False
    except OSError:
        failed = True
    time.sleep(0.005)
"""


def away(host: Host, act: Callable[[], object]) -> float:
    """Seconds without tokens: all gaps while `act` runs."""
    host.ssh(f": > {GAPS}")
    act()
    time.sleep(0.5)
    gaps = [float(line) for line in host.ssh(f"cat {GAPS}").stdout.split()]
    assert len(gaps) == 1, gaps
    return gaps[0]


def measure(rounds: int, start_s: float) -> list[float]:
    found = []
    with session.lab(light=True) as lab, control.own_lock_file():
        (host,) = lab.add("away")
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "LIGHT_START_S": str(start_s)}

        def deploy(number: int) -> None:
            marked = {**environment, "NUMBER": str(number)}
            done = control.deploy(env=control.declared("a", **light_runtime.SETTINGS, environment=marked))
            assert done.returncode == 0, done.stderr

        def restart() -> None:
            host.ssh("systemctl restart vllm-tiny")
            deadline = time.monotonic() + 60
            while not host.ssh(f"cat {GAPS}").stdout and time.monotonic() < deadline:
                time.sleep(0.2)

        env = control.declared("a", **light_runtime.SETTINGS)
        assert control.pyinfra_vllm("lock", control.INVENTORY, env=env).returncode == 0
        deploy(0)
        host.ssh(
            "cat > /run/client.py && systemd-run --quiet --unit=client python3 /run/client.py", stdin=CLIENT
        )
        for number in range(1, rounds + 1):
            switched = away(host, lambda number=number: deploy(number))  # type: ignore[misc]
            plain = away(host, restart)
            found.append(switched / plain)
            print(f"{number}: switch {switched:.2f} s, restart {plain:.2f} s: {found[-1]:.3f}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--start", type=float, default=5.0)
    options = parser.parse_args()
    found = measure(options.rounds, options.start)
    print(
        f"median {statistics.median(found):.3f} times a restart ({min(found):.3f} to {max(found):.3f};"
        f" at most {MOST})"
    )
    return int(statistics.median(found) > MOST)


if __name__ == "__main__":
    sys.exit(main())
