"""The resolver's prediction of memory: whether a model fits, and settings with which it would."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml
from resolving import resolve

from pyinfra_vllm.catalog import gpus, shapes
from pyinfra_vllm.catalog.quantization import Quantization
from pyinfra_vllm.tuning.request import cataloged

WAYS = re.compile(r"What would make it fit: (.*)")
TRIED: dict[str, Callable[[str], dict[str, Any]]] = {
    "max_model_len: ": lambda text: {"max_model_len": int(text.split()[1])},
    "the variant ": lambda text: {"variants": [text.split()[-1]]},
    "flags: ": lambda text: {
        "flags": yaml.safe_load(text.removeprefix("flags: ").partition("}")[0] + "}"),
    },
    "the AWQ checkpoint": lambda text: {},
}


def test_what_does_not_fit_says_what_would() -> None:
    found = resolve("Qwen/Qwen3-32B-AWQ", "NVIDIA GeForce RTX 4090", max_model_len=32768)
    (error,) = found.errors
    assert "max_model_len: " in error
    assert "2 GPUs" in error
    shorter = int(error.split("max_model_len: ")[1].split(";")[0])
    assert not resolve("Qwen/Qwen3-32B-AWQ", "NVIDIA GeForce RTX 4090", max_model_len=shorter).errors


def test_a_model_too_large_for_one_gpu_fits_in_two_pipeline_stages() -> None:
    stages = {"pipeline-parallel-size": 2, "tensor-parallel-size": 1}
    asked: dict[str, Any] = {"max_model_len": 4096, "gpu_count": 2}
    found = resolve("Qwen/Qwen2.5-32B-Instruct", "A100 40GB", flags=stages, **asked)
    assert not found.errors
    assert "doesn't fit" in str(resolve("Qwen/Qwen2.5-32B-Instruct", "A100 40GB", max_model_len=4096).errors)


@pytest.mark.thorough
@pytest.mark.parametrize("length", [4096, 32768, 262144])
@pytest.mark.parametrize("version", ["0.25.1", "0.28.0"])
@pytest.mark.parametrize("gpu", ["T4", "RTX 4090", "A10G", "RTX 5090", "A100 40GB"])
def test_everything_that_is_said_to_make_a_model_fit_does(gpu: str, version: str, length: int) -> None:
    for model in shapes.names():
        asked: dict[str, Any] = {"model": model, "gpu": gpu, "runtime": version, "max_model_len": length}
        before = resolve(**asked)
        found = [ways for text in before.errors for ways in WAYS.findall(text)]
        for way in found[0].split("; ") if found else ():
            if way == "a smaller model or a GPU with more memory":
                continue
            if " pipeline stages, flags: " in way:
                flags = yaml.safe_load(way.partition("flags: ")[2])
                change: dict[str, Any] = {"gpu_count": int(way.split()[0]), "flags": flags}
            elif way.endswith(" GPUs"):
                change = {"gpu_count": int(way.split()[0])}
            else:
                change = next(made(way) for start, made in TRIED.items() if way.startswith(start))
            if way.startswith("the AWQ"):
                packed = shapes.find(f"{model}-AWQ")
                change = {"model": packed}
            after = resolve(**asked | change)
            assert after.fit is not None and after.fit.fits, (model, way)
            assert set(after.errors) <= set(before.errors) or way.startswith("the AWQ"), (model, way)


def test_more_gpus_are_offered_only_where_the_rules_take_them() -> None:
    """By memory alone two would do, but 201 groups of channels can't be shared by two, four or eight: vLLM's
    documentation has pipeline stages for that ("Parallelism and scaling", edge cases).
    """
    shape = replace(shapes.find("Qwen/Qwen3-32B-AWQ") or pytest.fail(), intermediate=25600 + 128)
    (error,) = resolve(shape, "RTX 4090", max_model_len=32768).errors
    ways = error.split("What would make it fit: ")[1].split("; ")
    assert [way for way in ways if "GPUs" in way] == [
        "2 GPUs in 2 pipeline stages, flags: {pipeline-parallel-size: 2, tensor-parallel-size: 1}"
    ]


def test_a_number_of_gpus_that_heads_cannot_be_shared_by_is_offered_as_stages() -> None:
    asked: dict[str, Any] = {"gpu": "RTX 4090", "gpu_count": 6, "max_model_len": 32768}
    (error,) = resolve(**asked).errors
    assert error == (
        "6 GPUs can't share the 64 attention heads of Qwen/Qwen3-32B-AWQ: use 1, 2, 4 or 8 GPUs, or 6 GPUs in"
        " 3 pipeline stages, flags: {pipeline-parallel-size: 3, tensor-parallel-size: 2}"
    )
    stages = yaml.safe_load(error.partition("flags: ")[2])
    assert resolve(**asked, flags=stages).errors == ()
    declared = resolve(**asked, flags={"tensor-parallel-size": 6})
    assert "pipeline" not in str(declared.errors)  # the operator's own sizes are told, and not replaced


def test_stages_that_would_not_fit_either_are_not_offered() -> None:
    (error,) = resolve("Qwen/Qwen3-32B", "T4", gpu_count=3, max_model_len=32768).errors
    assert error.endswith("use 1, 2, 4 or 8 GPUs")


# Fits, tightly, or not


@pytest.mark.parametrize(
    ("length", "fits", "tight"), [(4096, True, False), (9216, True, True), (9600, False, False)]
)
def test_what_fits_by_less_than_the_prediction_may_be_off_fits_tightly(
    length: int, fits: bool, tight: bool
) -> None:
    """The KV cache has room for 9,488 tokens of 256 KiB; 3 % of the 21.7 GiB that are taken are 0.65 GiB."""
    found = resolve("Qwen/Qwen3-32B-AWQ", "RTX 4090", "0.33.0", max_model_len=length).fit
    assert found is not None
    assert (found.fits, found.tight) == (fits, tight)
    assert found.reserve_bytes == pytest.approx((9488 - length) * 262144, abs=16 * 262144)
    assert found.as_dict()["tight"] is tight
    assert found.as_dict()["reserve_bytes"] == found.reserve_bytes


def test_the_length_that_is_offered_does_not_fit_tightly() -> None:
    asked: dict[str, Any] = {"model": "Qwen/Qwen3-32B-AWQ", "gpu": "RTX 4090", "runtime": "0.33.0"}
    (error,) = resolve(**asked, max_model_len=32768).errors
    shorter = int(error.split("max_model_len: ")[1].split(";")[0])
    found = resolve(**asked, max_model_len=shorter).fit
    assert found and found.fits and not found.tight
    longer = resolve(**asked, max_model_len=shorter + 256).fit
    assert longer and longer.tight


def test_a_declared_cache_is_no_prediction() -> None:
    asked: dict[str, Any] = {"gpu": "H200", "runtime": "0.33.0", "max_model_len": 4096}
    found = resolve(**asked, flags={"kv-cache-memory-bytes": 4096 * 262144}).fit
    assert found and found.fits and not found.tight
    assert found.reserve_bytes == 0


@pytest.mark.parametrize("model", ["Qwen/Qwen3-32B", "Qwen/Qwen3-32B-AWQ"])
def test_something_is_always_suggested(model: str) -> None:
    tiny = replace(gpus.find("T4"), usable_bytes=gpus.GIB)
    (error,) = [
        text for text in resolve(model, tiny, gpu_count=8, max_model_len=4096).errors if "fit" in text
    ]
    assert error.split("What would make it fit: ")[1]


def test_a_hybrid_holds_less_where_prefix_caching_keeps_a_state_more() -> None:
    def tokens(runtime: str, *variants: str) -> int:
        found = resolve("Qwen/Qwen3.5-4B", "L40S", runtime, max_model_len=4096, variants=variants).fit
        assert found is not None
        return found.kv_tokens

    assert tokens("0.28.0") == tokens("0.28.0", "prefix_caching") < tokens("0.28.0", "no_prefix_caching")
    assert tokens("0.25.1") == tokens("0.25.1", "no_prefix_caching") > tokens("0.25.1", "prefix_caching")


def test_a_declared_type_of_32_bits_is_counted() -> None:
    asked = {"model": "Qwen/Qwen3-8B", "max_model_len": 4096}
    half, whole = (resolve(**asked, flags=flags).fit for flags in ({}, {"dtype": "Float32"}))
    assert half and whole
    assert whole.weights_bytes == pytest.approx(2 * half.weights_bytes)
    assert whole.kv_bytes_per_token == 2 * half.kv_bytes_per_token


def test_beside_a_rejected_card_nothing_is_suggested() -> None:
    found = resolve("Qwen/Qwen3-32B", "Tesla V100-SXM2-16GB", "0.18.0")
    assert "not supported" in str(found.errors)
    assert "make it fit" not in str(found.errors)


def test_no_way_is_offered_beside_a_refusal_that_it_leaves() -> None:
    """gpt-oss on a T4, which has no kernel for it: two of them have none either."""
    mxfp4 = Quantization("mxfp4", kernels="mxfp4")
    shape = replace(cataloged("Qwen/Qwen3-30B-A3B"), quantization=mxfp4)
    found = resolve(shape, "Tesla T4", max_model_len=4096)
    assert "has no kernel for such weights" in str(found.errors)
    assert "doesn't fit" in str(found.errors) and "make it fit" not in str(found.errors)
    exposed = resolve("Qwen/Qwen3-32B-AWQ", "RTX 4090", "0.21.0", exposed=True)
    assert "CVE-2026-48746" in str(exposed.errors) and "make it fit" not in str(exposed.errors)


def test_ways_are_offered_beside_a_slip_of_the_operator_s() -> None:
    asked = {"gpu": "RTX 4090", "max_model_len": 32768, "flags": {"max-num-sqes": 8}}
    errors = str(resolve("Qwen/Qwen3-32B-AWQ", **asked).errors)
    assert "did you mean --max-num-seqs" in errors and "What would make it fit: max_model_len" in errors


def test_without_a_way_to_share_the_model_no_fit_is_told() -> None:
    found = resolve(gpu_count=3)
    assert found.fit is None
    assert "64 attention heads" in str(found.errors)
