"""An operator's wishes to the resolver, variants, flags and environment, and the answer to each mistake."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from resolving import resolve, values

from pyinfra_vllm.catalog import flags as flag_table
from pyinfra_vllm.catalog import table
from pyinfra_vllm.config.fields import Flags


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


# Words and keys that are known of the scanned vLLM alone (catalog/flag_types.json): of another one a warning


@pytest.mark.parametrize(
    ("runtime", "flags", "told"),
    [
        (
            "0.31.0",
            {"kv-cache-dtype": "fp9"},
            "flags: kv-cache-dtype must be one of auto, bfloat16, float16, fp8,",
        ),
        ("0.33.0", {"kv-cache-dtype": "fp8_e4m3fn"}, "fp8_e4m3fn"),
        ("0.33.0", {"scheduling-policy": "fair"}, "must be one of fcfs, priority, not 'fair'"),
        ("0.33.0", {"compilation-config": {"mod": 3}}, "has no key 'mod'"),
        ("0.33.0", {"speculative-config": {"method": "eagle4", "model": "/srv/a"}}, "eagle4 is no method of"),
        ("0.33.0", {"attention-backend": "XFORMERS"}, "attention-backend: xformers} is none"),
        (
            "0.33.0",
            {"tool-call-parser": "qwen", "enable-auto-tool-choice": True},
            "tool-call-parser: qwen} is none",
        ),
        ("0.28.0", {"reasoning-parser": "qwen3x"}, "reasoning-parser: qwen3x} is none"),
    ],
)
def test_words_that_the_scanned_vllm_does_not_have(runtime: str, flags: dict[str, Any], told: str) -> None:
    found = resolve("Qwen/Qwen3-8B", runtime=runtime, flags=flags)
    (warning,) = [text for text in found.warnings if told in text]
    assert "vLLM 0.32.0" in warning and runtime in warning
    assert not found.errors and found.understood


@pytest.mark.parametrize("runtime", ["0.28.0", "0.32.0", "0.33.0"])
def test_words_that_the_scanned_vllm_has(runtime: str) -> None:
    flags = {
        "kv-cache-dtype": "fp8",
        "scheduling-policy": "priority",
        "compilation-config": {"mode": 3},
        "attention-backend": "FLASH_ATTN",
        "reasoning-parser": "qwen3",
        "tool-call-parser": "hermes",
        "enable-auto-tool-choice": True,
    }
    assert "0.32.0, and" not in str(resolve(runtime=runtime, flags=flags).warnings)


# Variants


@pytest.mark.parametrize("variant", table("variants.yaml"))
def test_every_variant_resolves_on_a_model_made_for_it(variant: str) -> None:
    given_value: Any = {variant: {"model": "/srv/draft"}} if variant == "eagle3" else variant
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


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"batched_graphs": "abc"}, "batched_graphs: max_num_seqs must be a number above 0"),
        ({"batched_graphs": [1]}, "not [1]"),
        ({"batched_graphs": 0}, "must be a number above 0"),
        ({"batched_graphs": -4}, "not -4"),
        ({"batched_graphs": True}, "not True"),
        ({"batched_graphs": 2.5}, "not 2.5"),
        ({"batched_graphs": math.inf}, "not inf"),
        ({"batched_graphs": 10**400}, "a number of that size"),
        ({"batched_graphs": {"max_num_seqs": None}}, "not None"),
        ({"chunked_prefill": "2k"}, "chunked_prefill: tokens must be a number above 0"),
        ({"chunked_prefill": -5}, "not -5"),
        ({"mtp": {"tokens": "1"}}, "mtp: tokens must be"),
        ({"ngram": 0}, "ngram: tokens must be"),
        ({"ngram": -1}, "ngram: tokens must be"),
        ({"ngram": "x"}, "not 'x'"),
        ({"ngram": {"tokens": 4, "lookup_max": 0}}, "ngram: lookup_max must be"),
        ({"eagle3": 5}, "eagle3: model must be a text, not 5"),
        ({"eagle3": {"model": " "}}, "eagle3: model must be a text"),
    ],
)
def test_parameters_that_cannot_be_understood(variant: dict[str, Any], message: str) -> None:
    found = resolve("Qwen/Qwen3.5-4B", variants=[variant])
    assert message in str(found.errors)
    assert not found.understood
    assert found.argv() == resolve("Qwen/Qwen3.5-4B").argv()


@pytest.mark.parametrize(
    "variants",
    [
        [{"eagle3": "org/draft"}, "mtp"],
        [{"ngram": 2}, {"mtp": 2}],
        ["thinking", "no_thinking"],
        ["no_prefix_caching", "prefix_caching"],
        [{"batched_graphs": 8}, {"batched_graphs": 32}],
        ["mtp", {"mtp": 2}],
    ],
)
def test_variants_that_contradict_each_other(variants: list[Any]) -> None:
    assert "contradict each other" in str(resolve("Qwen/Qwen3.5-4B", "H200", variants=variants).errors)


def test_the_same_variant_twice_is_no_contradiction() -> None:
    assert not resolve(variants=["no_thinking", "no_thinking", {"ngram": 2}, {"ngram": 2}]).errors


# What the operator declares


@pytest.mark.parametrize(
    ("runtime", "flags", "message"),
    [
        ("0.28.0", {"max-num-sqes": 8}, "did you mean --max-num-seqs?"),
        ("0.28.0", {"swap-space": 4}, "gone from vLLM 0.28.0 (last in 0.17.1)"),
        ("0.24.0", {"disable-log-requests": True}, "so delete it"),
        ("0.11.0", {"gdn-prefill-backend": "triton"}, "it is in 0.18.0 to"),
        ("0.28.0", {"port": 8000}, "flags: port belongs to `port`"),
        ("0.28.0", {"--api-key": "x"}, "VLLM_API_KEY"),
        ("0.28.0", {"trust_remote_code": True}, "belongs to `allow_code`"),
        ("0.28.0", {"xyzzy": 1}, "--help=all"),
        ("0.28.0", {"max-num-seqs": "many"}, "must be a number above 0"),
        ("0.28.0", {"gpu-memory-utilization": True}, "must be a number above 0"),
        ("0.28.0", {"tensor-parallel-size": 0}, "must be a number above 0"),
        ("0.28.0", {"tensor-parallel-size": 0.5}, "not 0.5"),
        ("0.28.0", {"tensor-parallel-size": 1.5}, "a whole one"),
        ("0.28.0", {"gpu-memory-utilization": math.inf}, "gpu-memory-utilization must be a number above 0"),
        ("0.28.0", {"gpu-memory-utilization": math.nan}, "gpu-memory-utilization must be a number above 0"),
        ("0.28.0", {"gpu-memory-utilization": -0.5}, "not -0.5"),
        ("0.28.0", {"max-num-seqs": 2.7}, "not 2.7"),
        ("0.28.0", {"max-num-seqs": 10**400}, "must be a number of at most"),
        ("0.28.0", {"seed": 10**400}, "must be a number of at most"),
        ("0.28.0", {"block-size": 0}, "block-size must be a number above 0"),
        ("0.28.0", {"kv-cache-dtype": [1]}, "kv-cache-dtype must be a text, not [1]"),
        ("0.28.0", {"dtype": 16}, "dtype must be a text"),
        ("0.28.0", {"enforce-eager": "yes"}, "must be true or false, not 'yes'"),
        ("0.28.0", {"cudagraph-capture-sizes": [1, 0]}, "a list of such, not [1, 0]"),
        ("0.28.0", {"cudagraph-capture-sizes": []}, "a list of such, not []"),
        ("0.28.0", {"speculative-config": '{"method": "ngram"'}, "must be a map or the JSON text of one"),
        ("0.28.0", {"speculative-config": "ngram"}, "must be a map or the JSON text of one"),
        ("0.28.0", {"speculative-config": "[" * 100_000}, "must be a map or the JSON text of one"),
        ("0.28.0", {"speculative-config": '{"a": 1e400}'}, "must be a map or the JSON text of one"),
        ("0.28.0", {"hf-overrides": nested(40)}, "more than 32 levels deep"),
        ("0.28.0", {"hf-overrides": {"a": [math.nan]}}, "not infinity or NaN"),
        ("0.28.0", {"max-num-seqs": 8, "max_num_seqs": 9}, "are the same flag"),
        (
            "0.33.0",
            {"device-memory-utilization": 0.5, "gpu-memory-utilization": 0.9},
            "device-memory-utilization and gpu-memory-utilization are the same flag",
        ),
    ],
)
def test_flags_that_cannot_be(runtime: str, flags: dict[str, Any], message: str) -> None:
    found = resolve(runtime=runtime, flags=flags)
    assert message in str(found.errors)


@pytest.mark.parametrize("flag", sorted(table("flag_changes.yaml")["refused"]))
def test_declaration_and_resolve_refuse_the_same_flags(flag: str) -> None:
    refusal = flag_table.refusal(flag)
    with pytest.raises(ValueError, match=re.escape(str(refusal))):
        TypeAdapter(Flags).validate_python({flag: "x"})
    assert f"flags: {flag} {refusal}" in str(resolve(flags={flag: "x"}).errors)


@pytest.mark.parametrize("flag", ["no-trust-remote-code", "config.port"])
def test_other_form_of_a_refused_flag_is_refused(flag: str) -> None:
    with pytest.raises(ValueError, match="belongs to"):
        TypeAdapter(Flags).validate_python({f"--{flag}": True})
    assert "belongs to" in str(resolve(flags={flag: True}).errors)


def test_the_api_key_is_not_repeated_in_the_message() -> None:
    assert "sesame" not in json.dumps(resolve(flags={"api-key": "sesame"}).as_dict())


def test_a_renamed_flag_is_translated_in_both_directions() -> None:
    new = resolve(runtime="0.28.0", flags={"cuda-graph-sizes": [1, 2, 4]})
    assert values(new)["--cudagraph-capture-sizes"] == [1, 2, 4]
    assert "is called --cudagraph-capture-sizes" in str(new.warnings)
    old = resolve(runtime="0.11.0", flags={"cudagraph-capture-sizes": [1, 2, 4]})
    assert values(old)["--cuda-graph-sizes"] == [1, 2, 4]


@pytest.mark.parametrize("version", ["0.25.1", "0.33.0"])
def test_a_second_name_of_a_flag_is_that_flag(version: str) -> None:
    found = resolve(runtime=version, flags={"device-memory-utilization": 0.5})
    assert not found.errors
    assert values(found)["--gpu-memory-utilization"] == 0.5
    assert "--device-memory-utilization" not in values(found)
    assert found.fit == resolve(runtime=version, flags={"gpu-memory-utilization": 0.5}).fit


def test_a_map_may_be_json_text_and_merges_with_what_a_variant_sets() -> None:
    text = '{"method": "ngram", "num_speculative_tokens": 2}'
    found = resolve(variants=[{"ngram": {"lookup_max": 3}}], flags={"speculative-config": text})
    assert values(found)["--speculative-config"] == {
        "method": "ngram",
        "num_speculative_tokens": 2,
        "prompt_lookup_max": 3,
    }


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


def test_the_installed_runtime_s_flags_win_over_the_catalog() -> None:
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
        "--disable-uvicorn-access-log",
        "--no-enable-prefix-caching",
        "--enforce-eager",
        "--gpu-memory-utilization", "0.92",
        "--hf-overrides", '{"a":[true],"b":1}',
        "--linear-backend", "humming",
    ]  # fmt: skip


def test_an_operator_who_wants_access_logs_declares_them() -> None:
    assert "--disable-uvicorn-access-log" not in values(resolve(flags={"disable-uvicorn-access-log": None}))


def test_declared_environment_wins_and_changes_the_expected_kernel() -> None:
    found = resolve(
        objective="throughput",
        environment={"VLLM_DISABLED_KERNELS": "MacheteLinearKernel", "VLLM_LOGGING_COLOR": "1"},
    )
    assert found.environment["VLLM_LOGGING_COLOR"] == "1"
    assert found.kernel == ("Marlin",)


RECKONED = (
    "block-size", "cuda-graph-sizes", "data-parallel-size", "device-memory-utilization",
    "enable-chunked-prefill",
    "enable-prefix-caching", "pipeline-parallel-size", "spec-method", "spec-model", "spec-tokens",
    "speculative-config.num_speculative_tokens", "compilation-config.cudagraph_capture_sizes",
    "cudagraph-capture-sizes", "compilation-config", "dtype", "enforce-eager", "gpu-memory-utilization",
    "kv-cache-dtype",
    "kv-cache-memory-bytes", "linear-backend", "max-cudagraph-capture-size", "max-num-batched-tokens",
    "max-num-seqs",
    "quantization", "speculative-config", "tensor-parallel-size",
)  # fmt: skip
FLAG_NAMES = (*RECKONED, *sorted(name.removeprefix("--") for name in flag_table.known("0.28.0")))
NUMBERS = (
    st.integers() | st.floats() | st.sampled_from([0, 1, 0.5, 2.7, 10**18, 10**400, -1, math.inf, math.nan])
)
VALUES = (
    st.none()
    | st.booleans()
    | NUMBERS
    | st.text(max_size=5)
    | st.lists(NUMBERS | st.text(max_size=2), max_size=3)
    | st.sampled_from(
        ["{", "[" * 5000, '{"num_speculative_tokens": 4}', '{"cudagraph_capture_sizes": [1, "2"]}']
    )
)
MAPS = st.dictionaries(
    st.sampled_from(["num_speculative_tokens", "method", "model", "cudagraph_capture_sizes"])
    | st.text(max_size=3),
    VALUES,
    max_size=3,
)
PARAMETERS = {name: list(variant.get("parameters", {})) for name, variant in table("variants.yaml").items()}


@st.composite
def variants(draw: st.DrawFn) -> Any:
    name = draw(st.sampled_from([*PARAMETERS, "xyzzy"]))
    return draw(
        st.just(name)
        | (VALUES | MAPS).map(lambda value: {name: value})
        | st.dictionaries(st.sampled_from([*PARAMETERS.get(name, []), "x"]), VALUES).map(
            lambda named: {name: named}
        )
    )


@given(
    st.dictionaries(
        st.sampled_from(RECKONED) | st.sampled_from(FLAG_NAMES),
        VALUES | MAPS,
        max_size=5,
    )
)
def test_whatever_value_a_known_flag_gets_there_is_an_answer(flags: dict[str, Any]) -> None:
    found = resolve(flags=flags, variants=[{"batched_graphs": 8}, "qk_norm_rope_fusion", "fp8_kv_cache"])
    assert found.argv() is not None
    assert json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.thorough
@given(
    st.sampled_from(["Qwen/Qwen3.5-4B", "Qwen/Qwen3-30B-A3B-AWQ"]),
    st.sampled_from(["T4", "A10G", "H200", "cpu"]),
    st.sampled_from(["0.11.0", "0.28.0", "0.33.0"]),
    st.lists(variants(), max_size=4),
    st.dictionaries(st.sampled_from(RECKONED), VALUES | MAPS, max_size=2),
)
def test_whatever_a_variant_is_given_there_is_an_answer_and_no_nonsense_in_argv(
    model: str, gpu: str, runtime: str, given_variants: list[Any], flags: dict[str, Any]
) -> None:
    found = resolve(model, gpu, runtime, variants=given_variants, flags=flags)
    assert json.dumps(found.as_dict(), allow_nan=False)
    for flag in ("--max-num-seqs", "--max-num-batched-tokens", "--max-cudagraph-capture-size"):
        value = values(found).get(flag, 1)
        assert isinstance(value, int) and value > 0 and value is not True


def test_a_cpu_cache_that_is_no_number_is_an_error() -> None:
    for space in ("half", "0", "-1", "1.5", "٣", "9" * 5000):
        found = resolve(gpu="cpu", gpu_count=0, environment={"VLLM_CPU_KVCACHE_SPACE": space})
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
    assert {flag.flag.split(".")[0] for flag in found.flags} <= flag_table.known("0.28.0")


# A kernel is chosen by --linear-backend or by VLLM_DISABLED_KERNELS: the operator's word ends the objective's


@pytest.mark.parametrize("runtime", ["0.28.0", "0.33.0"])
@pytest.mark.parametrize(
    ("objective", "declared", "kernel"),
    [
        ("latency", {"flags": {"linear-backend": "machete"}}, "Machete"),
        ("latency", {"flags": {"linear-backend": "humming"}}, "Humming"),
        ("balanced", {"environment": {"VLLM_DISABLED_KERNELS": "HummingLinearKernel"}}, "Machete"),
    ],
)
def test_the_objective_s_kernel_yields_to_a_declared_one(
    runtime: str, objective: str, declared: dict[str, Any], kernel: str
) -> None:
    found = resolve(runtime=runtime, objective=objective, max_model_len=4096, **declared)
    assert not found.errors
    assert found.kernel == (kernel,)
    assert ("VLLM_DISABLED_KERNELS" in found.environment) is ("environment" in declared)
    assert ("--linear-backend" in values(found)) is ("flags" in declared)
