"""`pyinfra-vllm tune` from vLLM's own choices on: the kernel that the catalog has for one stream on a Hopper
card must be found, and confirmed.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
import yaml
from lab import control
from lab.machine import Host
from lab.session import Lab

from pyinfra_vllm.catalog import gpus
from pyinfra_vllm.config.profiles import MeasuredProfile

from . import looks
from .story import Story, host, service

# Marlin was 1.24 times stock for one stream of a 32B model on an H200 (docs/tuning.md).
TRIED = ["marlin", "graphs-8"]
# The known trade of that kernel: the first token, and many streams (docs/gate.md).
GATE = {
    "budget_s": 30,
    "concurrency": [1, 8],
    "quality": False,  # random weights have no answers to lose
    "margins": {"c1": {"ttft_s": 1.0}, "c8": {"tokens_per_s": 0.15, "e2e_s": 0.2}},
}
# As `calibrate` leaves it on a quiet H200, so that short looks and four pairs are enough.
NOISE = {"schema": "pyinfra-vllm/noise/1", "runs": 5, "phases": {"c1": {"tokens_per_s": 0.02}}}


@pytest.mark.parametrize("model", ["Qwen/Qwen3-8B-AWQ", "Qwen/Qwen3-32B-AWQ"])
def test_tuning_finds_the_kernel_for_one_stream(lab: Lab, model: str, tmp_path: Path) -> None:
    declared = service(model, objective="latency", gate=GATE, tune={"only": TRIED})
    with (
        host(lab, "tuning", 1, [model]) as solo,
        Story(f"tuning-{model.split('-')[1]}", solo, {"chat": declared}, "chat") as story,
    ):
        file = _begin_with_stock(solo, model)
        try:
            story.install("first installation: vLLM's own choices")
            solo.ssh(f"cat > {looks.ROOT}/chat/noise.json <<'X'\n{json.dumps(NOISE)}\nX")
            release = looks.running(solo, "chat")
            step, told = story.tune("tune, for one stream", tmp_path)
            story.facts["tuned"] = told
            story.must(step.exit_code == 0 and told.get("status") == "done", "the search is done", told)
            story.must("marlin" in str(told.get("winner")), "it finds the kernel for one stream", told)
            story.must((told.get("interval") or [0])[0] > 1, "and is sure of its gain", told)
            story.serves(release)
            story.deploy("the profile that it wrote")
            story.ends(story.steps[-1], 0, "committed")
        finally:
            file.unlink(missing_ok=True)


def _begin_with_stock(solo: Host, model: str) -> Path:
    """A measured profile without any flag, in place of the catalog's flags for the objective."""
    name = solo.ssh("nvidia-smi --query-gpu=name --format=csv,noheader").stdout.splitlines()[0].strip()
    card = gpus.find(name).title  # so that `tune` writes to this very file
    gain = {"phase": "c1", "metric": "tokens_per_s", "before": 1, "after": 1.01, "ratio": 1.01}
    tuned = {
        "flags": {},
        "measured": date(2026, 11, 29),
        "workload": {"input_tokens": 250, "output_tokens": 128, "streams": [1]},
        "gain": {**gain, "interval": [1.001, 1.02]},
    }
    document = {
        "schema": "pyinfra-vllm/profile/1",
        "card": card,
        "gpus": 1,
        "model": model,
        "runtime": looks.version(solo),
        "objectives": {"latency": tuned},
    }
    file = control.project() / MeasuredProfile.model_validate(document).file
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(document))
    return file
