"""With `stable_paths` the next checkpoint of the same shape starts with what the last one compiled; without,
and with another shape, vLLM compiles. The real vLLM says so in its log, and no compiler runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lab import compiling, control, serving
from lab.machine import Host
from lab.session import Lab
from lab.shell import say

MODEL = "lab/steady"
CACHE = "/srv/pyinfra-vllm/tiny/current/cache/vllm/torch_compile_cache"
SETTINGS: dict[str, Any] = {
    "model": MODEL,
    "flags": {"max-num-seqs": 4},  # and no `enforce-eager`, which the lab's other services have
    "environment": {"VLLM_CPU_KVCACHE_SPACE": "1", **compiling.ENVIRONMENT},
    "gate": {
        "budget_s": 5,
        "concurrency": [1],
        "quality": False,
        "on_inconclusive": "keep",
        "throughput_margin": 0.9,
        "tpot_margin": None,
        "ttft_margin": None,
    },
}
QUESTION = "What is the capital of Japan?"

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not compiling.COMPILER.exists(), reason="this machine has no g++"),
]


@dataclass(frozen=True)
class Start:
    """One start of the server: where it found its checkpoint, the compiled graphs that it loaded and saved by
    their paths, and how many libraries were compiled.
    """

    path: str
    loaded: list[str]
    saved: list[str]
    compiled: int


@pytest.fixture(scope="module")
def host(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    (added,) = lab.add("steady", binds=compiling.BINDS)
    compiling.set_up(added, tmp_path_factory.mktemp("compiling"))
    with control.own_lock_file():
        yield added
    lab.remove("steady")


def serve(lab: Lab, host: Host, checkpoint: Path, stable: bool, **config: Any) -> Start:
    """Publish a checkpoint as the model's next commit, `config` over its config.json, and switch to it."""
    files: dict[str, Path | bytes] = {path.name: path for path in checkpoint.iterdir()}
    told = {**json.loads((checkpoint / "config.json").read_text()), **config}
    files["config.json"] = json.dumps(told).encode()
    commit = lab.hub.publish(MODEL, files)
    env = control.declared("a", **SETTINGS, stable_paths=stable)
    locked = control.pyinfra_vllm("lock", control.INVENTORY, env=env)
    assert locked.returncode == 0, locked.stderr
    done = control.pyinfra("deploy.py", "-y", "--limit", host.name, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    document = json.loads(host.ssh("cat /srv/pyinfra-vllm/tiny/current/release.json").stdout)
    assert document["checkpoint"]["commit"] == commit and serving.ask(host, [QUESTION])[0].strip()
    start = last_start(host, document["argv"][2])
    say(f"{commit[:8]}: {start}")
    return start


def last_start(host: Host, path: str) -> Start:
    show = "systemctl show vllm-tiny -P"
    invocation, since = host.ssh(f"{show} InvocationID; {show} ExecMainStartTimestamp").stdout.splitlines()
    log = host.ssh(f"journalctl -q -o cat _SYSTEMD_INVOCATION_ID={invocation}").stdout
    new = host.ssh(f"find -L {CACHE} -name '*.so' -newermt '{since}'").stdout.split()
    return Start(
        path,
        re.findall(r"Directly load AOT compilation from path (\S+)", log),
        re.findall(r"saved AOT compiled function to (\S+)", log),
        len(new),
    )


def test_only_weights_that_changed_need_no_compiling(lab: Lab, host: Host) -> None:
    one, other = (lab.parts.checkpoints[f"lab/good-{name}"] for name in "ab")

    first = serve(lab, host, one, stable=True)
    assert first.path.startswith("/run/pyinfra-vllm-checkpoint-")
    assert first.loaded == [] and len(first.saved) == 1 and first.compiled > 0

    other_weights = serve(lab, host, other, stable=True)
    assert other_weights == Start(first.path, loaded=first.saved, saved=[], compiled=0)

    other_shape = serve(lab, host, other, stable=True, rms_norm_eps=1e-5)
    assert other_shape.path != first.path
    assert other_shape.loaded == [] and len(other_shape.saved) == 1 and other_shape.compiled > 0

    without = serve(lab, host, other, stable=False)
    assert without.path.startswith("/srv/pyinfra-vllm/checkpoints/lab--steady/")
    assert without.loaded == [] and len(without.saved) == 1 and without.compiled > 0
