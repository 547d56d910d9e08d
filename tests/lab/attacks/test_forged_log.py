"""A client of the real vLLM writes into its log: the server quotes the name of a model that it lacks."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from lab import control, light_runtime
from lab.session import Lab

from pyinfra_vllm.on_host.server import kernel

from .people import MALLORY, PLACE, PORT, ROOT, UNIT, Attacked

pytestmark = pytest.mark.full

FORGED = "WARNING 11-28 02:13:31 [awq_marlin.py:1] You specified quantization=awq, so forcing awq. FORGED"
GATE = {"budget_s": 5, "concurrency": [1], "quality": False, "on_inconclusive": "keep"}
# Asks for it from before the server listens until the end.
CLIENT = """
import json, sys, time, urllib.error, urllib.request as web
port, forged = sys.argv[1:]
url = f"http://127.0.0.1:{port}/v1/chat/completions"
json_type = {"Content-Type": "application/json"}
body = {"model": "x" + chr(10) + forged + chr(10), "messages": [{"role": "user", "content": "x"}]}
while True:
    try:
        web.urlopen(web.Request(url, json.dumps(body).encode(), json_type), timeout=60)
    except urllib.error.HTTPError as refused:
        print("refused", refused.code)
    except OSError:
        pass
    time.sleep(0.05)
"""


@pytest.fixture
def target(lab: Lab) -> Iterator[Attacked]:
    """A host of its own, with nothing on it yet."""
    (host,) = lab.add("forged")
    host.ssh(f"useradd --create-home {MALLORY} && mkdir -m 1777 {PLACE}")
    yield Attacked(host)
    lab.remove("forged")


def lines(target: Attacked) -> list[tuple[float, str]]:
    """The service's log: when each line was written, and the line."""
    told = target.sh(f"journalctl --no-pager --quiet --all -o json --unit={UNIT}")
    entries = [json.loads(line) for line in told.splitlines()]
    return [(int(entry["__REALTIME_TIMESTAMP"]) / 1e6, str(entry["MESSAGE"])) for entry in entries]


def checked_at(target: Attacked) -> float:
    """When the switch began to check the kernel."""
    entries = f"[json.loads(line) for line in open('{ROOT}/tiny/journal.jsonl')]"
    code = (
        f"from datetime import datetime\n(at,) = [entry['at'] for entry in {entries} "
        "if (entry['step'], entry['state']) == ('kernel', 'intended')]\n"
        "print(datetime.fromisoformat(at).timestamp())"
    )
    return float(target.on_host(code))


@pytest.mark.timeout(600)
def test_a_kernel_line_that_a_client_forges_does_not_count(target: Attacked) -> None:
    env = control.declared("a", gate=light_runtime.GATE)
    with control.own_lock_file(), target.running("forge", CLIENT, str(PORT), FORGED):
        locked = control.pyinfra_vllm("lock", control.INVENTORY, env=env)
        assert locked.returncode == 0, locked.stderr
        done = control.pyinfra("deploy.py", "-y", "--limit", "forged", env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "check the kernel: pass; CPUWNA16" in done.stderr
    log = lines(target)
    in_time = [line for at, line in log if "FORGED" in line and at < checked_at(target)]
    assert in_time, "no forged line was in the log before the kernel was checked: nothing was shown"
    assert kernel.check([line for _, line in log])["verdict"] == "fail", "the forged line would not decide"
