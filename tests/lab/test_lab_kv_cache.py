"""The KV cache of one request, asked of the lab's own vLLM: its grouping code against ours.

No host is needed. The models are built without weights (scripts/ask_kv_cache.py), at four lengths each.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lab import runtime

from pyinfra_vllm import fit
from pyinfra_vllm.catalog import shapes

pytestmark = [pytest.mark.alone, pytest.mark.full]
SCRIPT = Path(__file__).parents[2] / "scripts/ask_kv_cache.py"
RECORDED = json.loads((Path(__file__).parents[1] / "fixtures/field/kv_cache.json").read_text())
LIMIT_S = 1800
WITHIN = 0.03


@pytest.fixture(scope="module")
def asked() -> dict[str, dict[str, Any]]:
    """The answers of the lab's vLLM, by model."""
    configs = {row["name"]: row["config"] for row in RECORDED}
    done = subprocess.run(
        [runtime.venv() / "bin/python", SCRIPT],
        input=json.dumps(configs),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {row["name"]: row for row in json.loads(done.stdout)}


def test_many_kinds_of_architectures_are_asked() -> None:
    kinds = {row["config"]["model_type"] for row in RECORDED}
    assert len(kinds) >= 12
    assert {"llama", "gemma3_text", "deepseek_v2", "qwen3_next", "glm4_moe"} <= kinds


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: row["name"])
def test_the_lab_s_vllm_says_what_was_recorded(row: dict[str, Any], asked: dict[str, Any]) -> None:
    found = asked[row["name"]]
    assert (found["in_flight"], found["requests"]) == (row["in_flight"], row["requests"])


@pytest.mark.parametrize("name", [row["name"] for row in RECORDED])
def test_our_prediction_is_what_the_lab_s_vllm_says(name: str, asked: dict[str, Any]) -> None:
    found = asked[name]
    model = shapes.from_config(name, found["config"])
    for length, needed in found["requests"].items():
        load = fit.Load(1, int(length), 0.9, found["in_flight"], 64, dtype="bfloat16")
        assert fit.layout(model, load).request_bytes(int(length)) == pytest.approx(needed, rel=WITHIN)
