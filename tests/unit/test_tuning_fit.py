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
            if way.endswith(" GPUs"):
                change: dict[str, Any] = {"gpu_count": int(way.split()[0])}
            else:
                change = next(made(way) for start, made in TRIED.items() if way.startswith(start))
            if way.startswith("the AWQ"):
                packed = shapes.find(f"{model}-AWQ")
                change = {"model": packed}
            after = resolve(**asked | change)
            assert after.fit is not None and after.fit.fits, (model, way)
            assert set(after.errors) <= set(before.errors) or way.startswith("the AWQ"), (model, way)


def test_more_gpus_are_offered_only_where_the_rules_take_them() -> None:
    """By memory alone two would do, but 201 groups of channels can't be shared by two, four or eight."""
    shape = replace(shapes.find("Qwen/Qwen3-32B-AWQ") or pytest.fail(), intermediate=25600 + 128)
    (error,) = resolve(shape, "RTX 4090", max_model_len=32768).errors
    assert "GPUs" not in error.split("What would make it fit")[1]


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


def test_without_a_way_to_share_the_model_no_fit_is_told() -> None:
    found = resolve(gpu_count=3)
    assert found.fit is None
    assert "64 attention heads" in str(found.errors)
