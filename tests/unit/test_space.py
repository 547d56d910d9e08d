"""The space of tuning: the catalog's data, pruned by the resolver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from resolving import asked

from pyinfra_vllm.catalog import flags as flag_table
from pyinfra_vllm.catalog import shapes, table
from pyinfra_vllm.catalog.conditions import holds
from pyinfra_vllm.catalog.shapes import Shape
from pyinfra_vllm.catalog.space import OBJECTIVES, entries, entry
from pyinfra_vllm.tuning import space
from pyinfra_vllm.tuning.decision import fixed_facts
from pyinfra_vllm.tuning.facts import Facts
from pyinfra_vllm.tuning.profile import Profile
from pyinfra_vllm.tuning.space import Space

GOOD: dict[str, Any] = {
    "name": "x", "group": "g", "about": "a", "answers": "same", "source": "s", "flags": {"--x": 1},
}  # fmt: skip
CARDS = ("NVIDIA H200", "NVIDIA A10G", "RTX 4090", "RTX 5090", "B200", "Tesla T4", "cpu")
MODELS = ("Qwen/Qwen3-32B-AWQ", "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B-AWQ", "Qwen/Qwen3.5-4B")


def pruned(
    model: str | Shape = "Qwen/Qwen3-32B-AWQ",
    gpu: str = "NVIDIA H200",
    version: str = "0.25.1",
    objective: str = "latency",
    draft_head: str | None = None,
    only: tuple[str, ...] | None = None,
    **more: Any,
) -> Space:
    settings = {"gpu_count": 0 if gpu == "cpu" else 1, "max_model_len": 4096, **more}
    return space.pruned(asked(model, gpu, version, objective=objective, **settings), draft_head, only)


def names(found: Space) -> list[str]:
    return [each.name for each in found.candidates]


def reasons(found: Space) -> dict[str, str]:
    return {each.name: each.because for each in found.ruled_out}


# The data


def test_every_flag_and_variant_of_the_space_exists() -> None:
    known = flag_table.known("0.33.0")
    for each in entries():
        assert all(flag_table.base(flag) in known for flag in each.flags), each.name
        for variant in each.variants:
            (name,) = [variant] if isinstance(variant, str) else variant
            assert name in table("variants.yaml"), each.name


def test_every_condition_of_the_space_can_be_asked() -> None:
    """A typing error in a `when` raises."""
    request = asked("Qwen/Qwen3-32B-AWQ", "NVIDIA H200", "0.25.1", objective="latency")
    facts = Facts(fixed_facts(request), Profile(), request.shape, request.card)
    for each in entries():
        for row in each.rules_out:
            holds(row["when"], facts)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": None}, "lacks name"),
        ({"source": ""}, "lacks source"),
        ({"flag": {}}, "unknown flag"),
        ({"answers": "maybe"}, "answers must be one of same, may change"),
        ({"objectives": ["speed"]}, "no objectives: speed"),
        ({"flags": {}}, "changes nothing"),
        ({"rules_out": [{"when": {}}]}, "each of rules_out has `when` and `because`"),
    ],
)
def test_slip_in_the_space_is_told(change: dict[str, Any], said: str) -> None:
    assert entry(GOOD).objectives == OBJECTIVES
    with pytest.raises(ValueError, match=f"space.yaml: .*{said}"):
        entry({**GOOD, **change})


# The pruning


def test_founding_cards_get_what_their_cases_were_gained_with() -> None:
    """An A10G gained 3.45 and 3.73 times by batched graphs, FP8 cache and multi-token prediction."""
    found = names(pruned("Qwen/Qwen3.5-4B", "NVIDIA A10G", "0.33.0"))
    assert {"graphs-32", "fp8-kv-cache", "mtp-1"} <= set(found)
    hopper = pruned(objective="throughput")
    assert {"marlin", "humming", "fp8-kv-cache"} <= set(names(hopper))
    assert reasons(hopper)["stock"] == "comes to the same as the current configuration"


def test_reasons_say_what_rules_a_configuration_out() -> None:
    found = reasons(pruned())
    assert found["marlin"] == "comes to the same as the current configuration"  # what `latency` gives today
    assert found["machete"] == "comes to the same as stock"
    assert found["mtp-1"] == "the model has no multi-token prediction layers"
    assert found["throughput-mode"] == "not tried for latency"
    assert "marlin" not in names(pruned(gpu="RTX 4090", model="Qwen/Qwen3-8B-AWQ"))


@pytest.mark.parametrize("card", ["A100 80GB", "RTX 4090"])
def test_backends_that_vllm_refuses_for_a_model_are_not_tried(card: str) -> None:
    config = {
        "model_type": "gpt_oss", "num_hidden_layers": 24, "num_local_experts": 32, "num_experts_per_tok": 4,
        "quantization_config": {"quant_method": "mxfp4"},
    }  # fmt: skip
    told = reasons(pruned(shapes.from_config("a/gpt-oss-20b", config, 13_800_000_000), card, "0.32.0"))
    assert "has no attention sinks" in told["flashinfer"]
    assert ("and not with attention sinks" in told.get("fp8-kv-cache", "")) is (card == "A100 80GB")
    assert told["humming"] == "the weights are not of a kind that this kernel serves"


def test_declared_settings_are_not_tried_otherwise() -> None:
    found = reasons(pruned(flags={"max_num_seqs": 64}, environment={"VLLM_DISABLED_KERNELS": "x"}))
    assert found["graphs-8"] == "you declare --max-num-seqs yourself"
    assert found["marlin"] == "you declare VLLM_DISABLED_KERNELS yourself"
    assert "you declare --speculative-config yourself" in reasons(pruned(variants=[{"ngram": 2}]))["ngram-4"]


def test_flags_that_the_runtime_lacks_and_models_that_would_not_fit_are_ruled_out() -> None:
    early = reasons(pruned(version="0.16.0"))
    assert "doesn't have --performance-mode" in early["interactivity"]
    assert "from vLLM 0.24 on" in early["humming"]
    tight = pruned("Qwen/Qwen3-32B-AWQ", "RTX 4090", "0.28.0", "throughput", max_model_len=9000)
    refused = {name: text for name, text in reasons(tight).items() if "doesn't fit" in text}
    assert not tight.current.errors and "batched-tokens-16384" in refused


def test_other_changes_come_on_top_of_the_objective_s_and_kernels_in_their_place() -> None:
    found = {each.name: each for each in pruned().candidates}
    assert found["graphs-8"].resolution.kernel == ("Marlin",)
    assert found["humming"].resolution.kernel == ("Humming",)
    assert "VLLM_DISABLED_KERNELS" not in found["humming"].resolution.environment
    assert found["stock"].resolution.kernel == ("Machete",)


def test_founding_cases_of_the_documentation_are_what_the_space_has() -> None:
    text = (Path(__file__).parents[2] / "docs/tune.md").read_text().partition("### The founding cases")[2]
    cases = [
        line.split(" | ")
        for line in text.splitlines()
        if (line.startswith("| ") and "RTX" in line) or "A10G," in line
    ]
    assert len(cases) == 4
    for _, what, kernel, tried in cases:
        gpu, model, context = what.split(", ")
        found = pruned(model, gpu, "0.33.0", "latency", max_model_len=int(context))
        assert ", ".join(names(found)) == tried.rstrip(" |"), what
        assert ", ".join(found.current.kernel) == kernel.replace("none", "")
        assert not found.current.errors and "--speculative-config" not in {
            f.flag for f in found.current.flags
        }


def test_only_the_chosen_configurations_are_tried() -> None:
    found = pruned(only=("marlin", "graphs-8", "throughput-mode"))
    assert names(found) == [name for name in names(pruned()) if name in ("marlin", "graphs-8")] != []
    assert reasons(found)["graphs-32"] == "you try others alone (`tune: {only: [...]}`)"
    assert reasons(found)["throughput-mode"] == "not tried for latency"


def test_draft_head_is_tried_where_it_is_declared() -> None:
    without, found = pruned(), pruned(draft_head="/srv/heads/x")
    assert "you declare no draft head" in reasons(without)["eagle3-3"]
    heads = {each.name: each for each in found.candidates if each.name.startswith("eagle3")}
    assert set(heads) == {"eagle3-2", "eagle3-3", "eagle3-5"}
    (value,) = [
        flag.value for flag in heads["eagle3-3"].resolution.flags if flag.flag == "--speculative-config"
    ]
    assert value == {"method": "eagle3", "model": "/srv/heads/x", "num_speculative_tokens": 3}
    assert "eagle3-5" not in names(pruned(objective="throughput", draft_head="/srv/heads/x"))
    own = reasons(pruned(draft_head="/srv/heads/x", flags={"speculative-config": {"method": "ngram"}}))
    assert own["eagle3-3"] == "you declare --speculative-config yourself"


def test_stack_has_the_changes_of_all_its_parts() -> None:
    found = pruned(draft_head="/srv/heads/x")
    stack = found.candidate("humming + fp8-kv-cache + eagle3-3")
    flags = {flag.flag: flag.value for flag in stack.resolution.flags}
    assert flags["--linear-backend"] == "humming" and flags["--kv-cache-dtype"] == "fp8"
    assert "--speculative-config" in flags and stack.resolution.kernel == ("Humming",)
    assert "VLLM_DISABLED_KERNELS" not in stack.resolution.environment, "one kernel replaces the other"
    assert stack.entry.changes_answers
    assert found.candidate("humming") is next(each for each in found.candidates if each.name == "humming")
    with pytest.raises(KeyError):
        found.candidate("humming + nothing")


def test_what_changes_answers_is_marked() -> None:
    marked = {each.name for each in pruned().candidates if each.entry.changes_answers}
    assert marked == {"fp8-kv-cache"}


@pytest.mark.thorough
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("gpu", CARDS)
def test_space_of_every_card_is_whole(gpu: str, objective: str) -> None:
    """Each entry is tried or ruled out, once; nothing that is tried has an error that the current
    configuration has not, and no two come to the same.
    """
    for model in MODELS:
        found = pruned(model, gpu, "0.33.0", objective)
        told = [*names(found), *reasons(found)]
        assert sorted(told) == sorted(["stock", *(each.name for each in entries())])
        identities = [(each.resolution.argv(), each.resolution.environment) for each in found.candidates]
        assert all(identities.count(each) == 1 for each in identities)
        for each in found.candidates:
            assert set(each.resolution.errors) <= set(found.current.errors)
        known = [each.entry.matters is None for each in found.candidates]
        assert known == sorted(known)
