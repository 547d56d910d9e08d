"""Chat templates of the real language model, good and damaged: read by the runtime's own transformers, and
refused before a switch.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lab import checkpoints, control, runtime
from lab.machine import Host
from lab.session import Lab

pytestmark = pytest.mark.full

CHILD = control.CHECKOUT / "src/pyinfra_vllm/in_runtime/chat_template.py"
DAMAGED = {
    "no-assistant-turn": "does not end where the answer begins",
    "foreign-template": "does not end where the answer begins",
    "wrong-end": "answers run on",
}


def problems(directory: Path) -> list[str]:
    order: dict[str, Any] = {
        "directory": str(directory),
        "tokenizer": str(directory),
        "template": None,
        "kwargs": {},
    }
    done = subprocess.run(
        [runtime.venv() / "bin/python", "-I", CHILD],
        input=json.dumps(order) + "\n",
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found: list[str] = json.loads(done.stdout)["problems"]
    return found


@pytest.mark.parametrize("variant", ["awq-g64", *DAMAGED])
def test_a_damaged_template_is_found_and_a_good_one_is_not(variant: str) -> None:
    found = problems(checkpoints.real(variant))
    if variant in DAMAGED:
        assert any(DAMAGED[variant] in problem for problem in found), found
    else:
        assert found == []


def test_a_release_with_a_broken_template_is_refused_before_anything_is_touched(lab: Lab, solo: Host) -> None:
    lab.hub.publish("real/no-assistant-turn", checkpoints.real("no-assistant-turn"))
    settings = {"model": "real/no-assistant-turn", "served_model_name": "real", "gate": {"quality": False}}
    env = {"PYINFRA_VLLM_LAB_SETTINGS": json.dumps(settings)}
    with control.own_lock_file():
        locked = control.pyinfra_vllm("lock", control.INVENTORY, env=env)
        assert locked.returncode == 0, locked.stderr
        done = control.pyinfra("deploy.py", "-y", "--limit", "solo", env=env)
    assert done.returncode == 1, done.stderr
    assert "chat template of release" in done.stderr and "<|im_start|>assistant" in done.stderr
    assert "refused" in done.stderr
