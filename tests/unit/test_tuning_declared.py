"""What an operator may ask of the resolver: variants, flags and environment, and what each mistake is answered with."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from resolving import resolve, values

from pyinfra_vllm.catalog import flags as catalogue
from pyinfra_vllm.catalog import table

# Variants


@pytest.mark.parametrize("variant", table("variants.yaml"))
def test_every_variant_resolves_on_a_model_made_for_it(variant: str) -> None:
    given_value: Any = {variant: {"model": "org/draft"}} if variant == "eagle3" else variant
    found = resolve("Qwen/Qwen3.5-4B-AWQ", "H200", "0.33.0", variants=[given_value])
    assert not found.errors
    assert found.flags != resolve("Qwen/Qwen3.5-4B-AWQ", "H200", "0.33.0").flags


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (["fp8_kv"], "did you mean fp8_kv_cache"),
        ([{"mtp": {"token": 2}}], "no parameter token; it takes tokens"),
        ([{"fp8_kv_cache": 3}], "it takes none"),
        (["eagle3"], "eagle3 needs model"),
        (["mtp"], "has no multi-token prediction layers"),
        (["text_only"], "no vision tower"),
    ],
)
def test_variants_that_cannot_be(variants: list[Any], message: str) -> None:
    assert message in str(resolve(variants=variants).errors)


def test_drafted_tokens_count_whatever_the_order_of_variants() -> None:
    stack: list[Any] = [{"batched_graphs": 8}, {"ngram": 3}]
    assert resolve(variants=stack).flags == resolve(variants=stack[::-1]).flags
    assert values(resolve(variants=stack))["--max-cudagraph-capture-size"] == 32


# What the operator declares


@pytest.mark.parametrize(
    ("runtime", "flags", "message"),
    [
        ("0.28.0", {"max-num-sqes": 8}, "did you mean --max-num-seqs?"),
        ("0.28.0", {"swap-space": 4}, "gone from vLLM 0.28.0 (last in 0.17.1)"),
        ("0.24.0", {"disable-log-requests": True}, "so delete it"),
        ("0.11.0", {"shutdown-timeout": 30}, "it is in 0.18.0 to"),
        ("0.28.0", {"port": 8000}, "the key `port`"),
        ("0.28.0", {"--api-key": "x"}, "VLLM_API_KEY"),
        ("0.28.0", {"trust_remote_code": True}, "the key `allow_code`"),
        ("0.28.0", {"xyzzy": 1}, "--help=all"),
        ("0.28.0", {"max-num-seqs": "many"}, "must be a number above 0"),
        ("0.28.0", {"gpu-memory-utilization": True}, "must be a number above 0"),
        ("0.28.0", {"tensor-parallel-size": 0}, "must be a number above 0"),
    ],
)
def test_flags_that_cannot_be(runtime: str, flags: dict[str, Any], message: str) -> None:
    found = resolve(runtime=runtime, flags=flags)
    assert message in str(found.errors)


def test_the_api_key_is_not_repeated_in_the_message() -> None:
    assert "sesame" not in json.dumps(resolve(flags={"api-key": "sesame"}).as_dict())


def test_a_renamed_flag_is_translated_in_both_directions() -> None:
    new = resolve(runtime="0.28.0", flags={"cuda-graph-sizes": [1, 2, 4]})
    assert values(new)["--cudagraph-capture-sizes"] == [1, 2, 4]
    assert "is called --cudagraph-capture-sizes" in str(new.warnings)
    old = resolve(runtime="0.11.0", flags={"cudagraph-capture-sizes": [1, 2, 4]})
    assert values(old)["--cuda-graph-sizes"] == [1, 2, 4]


def test_none_removes_and_later_layers_win() -> None:
    found = resolve(
        flags={"gpu-memory-utilization": None, "max_num_seqs": 8}, variants=[{"batched_graphs": 32}]
    )
    assert "--gpu-memory-utilization" not in values(found)
    assert values(found)["--max-num-seqs"] == 8


def test_mappings_merge_and_dotted_names_are_known_by_their_head() -> None:
    found = resolve(
        variants=["qk_norm_rope_fusion"],
        flags={"compilation-config": {"mode": 3}, "speculative-config.method": "ngram"},
    )
    assert values(found)["--compilation-config"] == {
        "mode": 3,
        "pass_config": {"enable_qk_norm_rope_fusion": True},
    }
    assert not found.errors


def test_the_installed_runtime_s_flags_win_over_the_catalogue() -> None:
    found = resolve(
        runtime_flags={"--max-model-len", "--brand-new"}, max_model_len=4096, flags={"brand-new": 1}
    )
    assert set(values(found)) == {"--max-model-len", "--brand-new"}
    assert "--gpu-memory-utilization is left out" in str(found.warnings)


def test_argv_is_sorted_and_spells_values_as_vllm_reads_them() -> None:
    flags = {
        "no-enable-prefix-caching": True,
        "enforce-eager": True,
        "cudagraph-capture-sizes": [1, 2],
        "hf-overrides": {"b": 1, "a": [True]},
    }
    assert resolve(flags=flags).argv() == [
        "--cudagraph-capture-sizes", "1", "2",
        "--no-enable-prefix-caching",
        "--enforce-eager",
        "--gpu-memory-utilization", "0.92",
        "--hf-overrides", '{"a":[true],"b":1}',
        "--linear-backend", "humming",
    ]  # fmt: skip


def test_declared_environment_wins_and_changes_the_expected_kernel() -> None:
    found = resolve(
        objective="throughput",
        environment={"VLLM_DISABLED_KERNELS": "MacheteLinearKernel", "VLLM_LOGGING_COLOR": "1"},
    )
    assert found.environment["VLLM_LOGGING_COLOR"] == "1"
    assert found.kernel == ("Marlin",)


RECKONED = (
    "cudagraph-capture-sizes", "compilation-config", "dtype", "enforce-eager", "gpu-memory-utilization", "kv-cache-dtype",
    "kv-cache-memory-bytes", "linear-backend", "max-cudagraph-capture-size", "max-num-batched-tokens", "max-num-seqs",
    "quantization", "speculative-config", "tensor-parallel-size",
)  # fmt: skip
FLAG_NAMES = (*RECKONED, *sorted(name.removeprefix("--") for name in catalogue.known("0.28.0")))
VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)


@given(
    st.dictionaries(
        st.sampled_from(RECKONED) | st.sampled_from(FLAG_NAMES),
        VALUES | st.dictionaries(st.text(), st.integers()),
        max_size=5,
    )
)
def test_whatever_value_a_known_flag_gets_there_is_an_answer(flags: dict[str, Any]) -> None:
    found = resolve(flags=flags, variants=[{"batched_graphs": 8}, "qk_norm_rope_fusion", "fp8_kv_cache"])
    assert found.as_dict() and found.argv() is not None


def test_a_cpu_cache_that_is_no_number_is_an_error() -> None:
    found = resolve(gpu="cpu", gpu_count=0, environment={"VLLM_CPU_KVCACHE_SPACE": "half"})
    assert "whole number of GiB" in str(found.errors)


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["Ll", "Nd", "Pd", "Pc"]), min_size=1, max_size=12),
        VALUES,
        max_size=5,
    )
)
def test_no_override_gets_an_unknown_flag_into_argv(flags: dict[str, Any]) -> None:
    found = resolve(flags=flags)
    assert {flag.flag.split(".")[0] for flag in found.flags} <= catalogue.known("0.28.0")
