"""The gate's verdict on a known trade is told before anything is switched."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from resolving import resolve

from pyinfra_vllm import trades
from pyinfra_vllm.catalog import table
from pyinfra_vllm.cli import cli
from pyinfra_vllm.on_host.bench.criteria import EVERY_PHASE, ONE_STREAM, Criteria
from pyinfra_vllm.tuning.decision import LINEAR_BACKENDS

HOPPER = table("trades.yaml")[0]
DOCS = Path(__file__).parents[2] / "docs/gate.md"
# One H100 (docs/tuning.md): `throughput` (Machete) and `latency` (Marlin). Its e2e_s was not recorded.
H100 = {
    **HOPPER,
    "kernels": {
        "Machete": {"c1": {"tokens_per_s": 75.0, "ttft_s": 0.060}, "c8": {"tokens_per_s": 493},
        "max": {"tokens_per_s": 1530}},
        "Marlin": {"c1": {"tokens_per_s": 87.9, "ttft_s": 0.107}, "c8": {"tokens_per_s": 470},
        "max": {"tokens_per_s": 909}},
    },
}  # fmt: skip


def recommended() -> Criteria:
    """The gate that the docs recommend for switching from `throughput` to `latency` on Hopper."""
    text = DOCS.read_text(encoding="utf-8")
    block = text[text.index("    gate:\n      margins:") :].split("\n\n")[0]
    return Criteria.from_dict(yaml.safe_load(block)["gate"])


def foreseen(before: str, after: str, criteria: Criteria, entry: dict[str, Any] = HOPPER) -> trades.Trade:
    found = trades.foreseen(entry, [before], [after], criteria)
    assert found is not None
    return found


@pytest.mark.parametrize("entry", [HOPPER, H100])
def test_the_recommended_gate_lets_latency_pass_on_hopper_and_the_default_does_not(
    entry: dict[str, Any],
) -> None:
    refused = foreseen("Machete", "Marlin", Criteria(), entry)
    assert not refused.passes
    assert {"max"} <= {change.phase for change in refused.changes if not change.passes} <= {"c8", "max"}
    assert foreseen("Machete", "Marlin", recommended(), entry).passes


def test_the_recommended_gate_still_takes_back_what_is_worse() -> None:
    worse = json.loads(json.dumps(HOPPER))
    worse["kernels"]["Marlin"]["max"]["tokens_per_s"] = 800
    assert not foreseen("Machete", "Marlin", recommended(), worse).passes
    assert not foreseen("Marlin", "Machete", recommended()).passes


def test_the_first_token_of_one_stream_passes_by_its_floor_and_fails_without() -> None:
    def first_token(criteria: Criteria) -> bool:
        (found,) = [c for c in foreseen("Machete", "Marlin", criteria).changes if c.metric == "ttft_s"]
        return found.passes

    assert first_token(Criteria()) and not first_token(Criteria(ttft_floor_s=0.04))
    assert first_token(Criteria(ttft_floor_s=0, margins={"c1": {"ttft_s": 0.8}}))
    assert first_token(Criteria(ttft_floor_s=0, ttft_margin=None))


@pytest.mark.parametrize("before", HOPPER["kernels"])
@pytest.mark.parametrize("after", HOPPER["kernels"])
def test_the_margins_that_are_named_would_let_it_pass(before: str, after: str) -> None:
    found = trades.foreseen(HOPPER, [before], [after], Criteria(ttft_floor_s=0))
    if before == after:
        assert found is None
        return
    assert found is not None
    assert found.passes or not foreseen(before, after, Criteria(ttft_floor_s=0)).passes
    assert foreseen(before, after, Criteria(ttft_floor_s=0, margins=dict(found.margins))).passes
    words = str(found)
    assert ("lets it pass" in words) is found.passes and ("gate.margins = {" in words) is not found.passes


def test_a_phase_that_the_gate_does_not_measure_is_not_foreseen() -> None:
    found = foreseen("Machete", "Marlin", Criteria(concurrency=(1, 8)))
    assert {change.phase for change in found.changes} == {"c1", "c8"} and found.passes


def test_what_is_not_known_is_not_foreseen() -> None:
    assert trades.foreseen(None, ["Machete"], ["Marlin"], Criteria()) is None
    assert trades.foreseen(HOPPER, None, ["Marlin"], Criteria()) is None
    assert trades.foreseen(HOPPER, ["Exllama"], ["Marlin"], Criteria()) is None


def test_the_catalog_s_figures_are_those_of_the_gate_s_metrics_with_a_source() -> None:
    for entry in table("trades.yaml"):
        assert entry["source"] and entry["measured"] and entry["when"]
        for kernel, phases in entry["kernels"].items():
            assert kernel in LINEAR_BACKENDS.values()
            for phase, metrics in phases.items():
                known = {*EVERY_PHASE, *(ONE_STREAM if phase == "c1" else ())}
                assert phase in ("c1", "c8", "max") and set(metrics) <= known
                assert all(math.isfinite(value) and value > 0 for value in metrics.values())


@pytest.mark.parametrize(
    ("gpu", "model", "known"),
    [
        ("NVIDIA H200", "Qwen/Qwen3-32B-AWQ", True),
        ("NVIDIA H100 80GB HBM3", "Qwen/Qwen3-14B-AWQ", True),
        ("NVIDIA GeForce RTX 4090", "Qwen/Qwen3-14B-AWQ", False),
        ("NVIDIA H200", "Qwen/Qwen3-8B", False),
    ],
)
def test_trades_are_known_where_they_were_measured(gpu: str, model: str, known: bool) -> None:
    found = resolve(model, gpu, runtime="0.25.1", objective="latency")
    assert (found.trades is not None) is known


def resolved(*more: str) -> str:
    asked = ["--model", "Qwen/Qwen3-32B-AWQ", "--gpu", "NVIDIA H200", "--runtime", "0.25.1"]
    done = CliRunner().invoke(
        cli, ["resolve", *asked, "--objective", "latency", *more], standalone_mode=False
    )
    assert done.exit_code == 0, done.output
    return done.output


def test_resolve_says_whether_a_gate_would_let_a_trade_pass(tmp_path: Path) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text(yaml.safe_dump({"gate": {"margins": recommended().margins}}))
    strict = json.loads(resolved("--json"))["warnings"]
    loose = json.loads(resolved("--gate", str(gate), "--json"))["warnings"]
    assert any("from Machete to Marlin" in text and "max: {tokens_per_s: 0.44" in text for text in strict)
    assert not any("from Machete to Marlin" in text for text in loose)
    assert "this gate would roll it back" in " ".join(resolved().split())
    assert "this gate lets it pass" in " ".join(resolved("--gate", str(gate)).split())
