"""The memory arithmetic against vLLM's own figures, and its behaviour at the edges."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_vllm import fit
from pyinfra_vllm.catalog import gpus, shapes
from pyinfra_vllm.catalog.shapes import Shape

H200 = gpus.find("H200")
STOCK = fit.Load(
    tensor_parallel_size=1,
    max_model_len=4096,
    utilization=0.92,
    max_num_batched_tokens=8192,
    max_num_seqs=1024,
)


def shape(name: str) -> Shape:
    found = shapes.find(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("model", "sixteen_bit", "eight_bit"),
    [
        ("Qwen/Qwen3-0.6B", 114688, 57344),
        ("Qwen/Qwen3-4B", 147456, 73728),
        ("Qwen/Qwen3-14B", 163840, 81920),
        ("Qwen/Qwen3-32B-AWQ", 262144, 131072),
        ("Qwen/Qwen3-30B-A3B", 98304, 49152),
        ("Qwen/Qwen2.5-32B-Instruct-AWQ", 262144, 131072),
        ("Qwen/Qwen3.5-4B", 32768, 16384),
    ],
)
def test_kv_bytes_per_token(model: str, sixteen_bit: int, eight_bit: int) -> None:
    assert fit.kv_bytes_per_token(shape(model), STOCK) == sixteen_bit
    assert fit.kv_bytes_per_token(shape(model), replace(STOCK, kv_cache_dtype="fp8")) == eight_bit


@pytest.mark.parametrize(
    ("model", "gib"),
    [
        ("Qwen/Qwen2.5-32B-Instruct-AWQ", 18.0),
        ("Qwen/Qwen3-0.6B-AWQ", 0.5),
        ("Qwen/Qwen3-1.7B-AWQ", 1.26),
        ("Qwen/Qwen3-4B-AWQ", 2.48),
        ("Qwen/Qwen3-8B-AWQ", 5.68),
        ("Qwen/Qwen3-14B-AWQ", 9.29),
        ("Qwen/Qwen3-32B-AWQ", 18.0),
        ("Qwen/Qwen3-30B-A3B-AWQ", 15.6),
    ],
)
def test_checkpoint_bytes_reproduce_the_published_sizes(model: str, gib: float) -> None:
    assert fit.checkpoint_bytes(shape(model)) / gpus.GIB == pytest.approx(gib, rel=0.02, abs=0.02)


@pytest.mark.parametrize(
    ("model", "load", "kernel", "weights_gib", "tokens"),
    [  # what vLLM 0.25.1 logged on an H200: tests/fixtures/kernel, docs/tuning.md
        ("Qwen/Qwen3-32B-AWQ", replace(STOCK, max_num_batched_tokens=512), "Machete", 18.59, 443_760),
        ("Qwen/Qwen3-32B-AWQ", replace(STOCK, max_num_batched_tokens=512), "Machete", 18.59, 447_776),
        ("Qwen/Qwen3-32B-AWQ", replace(STOCK, max_num_batched_tokens=512), "Marlin", 18.24, 445_216),
        ("Qwen/Qwen3-32B-AWQ", replace(STOCK, kv_cache_dtype="fp8"), "Machete", 18.62, 886_064),
        ("Qwen/Qwen3-8B-AWQ", STOCK, "Machete", 5.82, 883_152),
        ("Qwen/Qwen3-32B-AWQ", STOCK, "Machete", 18.59, 443_152),  # the resolver's throughput
        ("Qwen/Qwen3-32B-AWQ", STOCK, "Marlin", 18.24, 444_624),  # the resolver's latency
        ("Qwen/Qwen3-32B-AWQ", STOCK, "Humming", 18.24, 444_384),  # the resolver's balanced
        ("Qwen/Qwen3-32B-AWQ", replace(STOCK, max_num_batched_tokens=16384), "Machete", 18.59, 437_584),
    ],
)
def test_within_five_percent_of_an_h200_s_own_figures(
    model: str, load: fit.Load, kernel: str, weights_gib: float, tokens: int
) -> None:
    found = fit.predict(shape(model), H200, replace(load, kernels=(kernel,)))
    assert found.weights_bytes / gpus.GIB == pytest.approx(weights_gib, rel=0.02)
    assert found.kv_tokens == pytest.approx(tokens, rel=0.05)


def test_kv_tokens_of_qwen3_4b_in_the_vllm_documentation() -> None:
    """11.47 GiB on an L4: 83,488 tokens, 166,992 with FP8."""
    load = replace(STOCK, kv_cache_bytes=int(11.47 * gpus.GIB))
    assert fit.predict(shape("Qwen/Qwen3-4B"), gpus.find("L4"), load).kv_tokens == pytest.approx(
        83_488, rel=0.001
    )
    eight = replace(load, kv_cache_dtype="fp8")
    assert fit.predict(shape("Qwen/Qwen3-4B"), gpus.find("L4"), eight).kv_tokens == pytest.approx(
        166_992, rel=0.001
    )


def test_the_linear_layers_of_a_hybrid_keep_a_state_for_each_sequence() -> None:
    """24 layers of 48 KiB convolution window and 2 MiB state."""
    assert fit.state_bytes_per_sequence(shape("Qwen/Qwen3.5-4B"), STOCK) == 24 * (48 * 1024 + 2 * 1024**2)
    assert fit.state_bytes_per_sequence(shape("Qwen/Qwen3-4B"), STOCK) == 0


def test_captured_sizes_are_vllm_s_51_up_to_512() -> None:
    assert fit.captured_sizes(STOCK) == 51
    assert fit.captured_sizes(replace(STOCK, max_num_seqs=16)) == 7  # 1 2 4 8 16 24 32
    assert fit.captured_sizes(replace(STOCK, graph_limit=1)) == 1


def test_weights_and_heads_are_split_among_gpus_but_never_below_one_head() -> None:
    model = shape("Qwen/Qwen3-32B-AWQ")
    two, sixteen = (replace(STOCK, tensor_parallel_size=count) for count in (2, 16))
    assert fit.weights_bytes(model, two) == fit.weights_bytes(model, STOCK) // 2
    assert fit.kv_bytes_per_token(model, two) == 131072
    assert fit.kv_bytes_per_token(model, sixteen) == 64 * 1 * 2 * 128 * 2


def test_a_latent_cache_is_one_vector_for_each_layer() -> None:
    config = {
        "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128,
        "vocab_size": 129280, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "intermediate_size": 18432,
    }  # fmt: skip
    assert (
        fit.kv_bytes_per_token(shapes.from_config("x/y", config), STOCK) == 61 * 576 * 2 * 2
    )  # float32 unless said


@given(
    st.sampled_from(shapes.names()),
    st.sampled_from(["RTX 4090", "A40", "H200", "B200"]),
    st.integers(256, 40960),
    st.floats(0.3, 0.95),
)
def test_more_memory_never_holds_fewer_tokens(model: str, gpu: str, length: int, share: float) -> None:
    card = gpus.find(gpu)
    load = replace(STOCK, max_model_len=length, utilization=share)
    less, more = (
        fit.predict(shape(model), card, replace(load, utilization=each)) for each in (share, share + 0.05)
    )
    assert 0 <= less.kv_tokens <= more.kv_tokens
    assert less.fits <= more.fits
    assert less.fits == (less.kv_tokens >= length)


@pytest.mark.parametrize("model", ["Qwen/Qwen3-32B", "Qwen/Qwen3-32B-AWQ", "Qwen/Qwen3-14B"])
def test_every_suggestion_of_gpus_or_length_is_one_that_fits(model: str) -> None:
    card = gpus.find("RTX 4090")
    load = replace(STOCK, max_model_len=32768, max_num_batched_tokens=2048, max_num_seqs=256)
    for text in fit.suggestions(shape(model), card, load, 1):
        if text.endswith("GPUs"):
            load_then = replace(load, tensor_parallel_size=int(text.split()[0]))
        elif text.startswith("max_model_len"):
            load_then = replace(load, max_model_len=int(text.split()[1]))
        else:
            continue
        assert fit.predict(shape(model), card, load_then).fits, text


def test_something_is_always_suggested() -> None:
    tiny = replace(gpus.find("T4"), usable_bytes=gpus.GIB)
    assert fit.suggestions(shape("Qwen/Qwen3-32B-AWQ"), tiny, replace(STOCK, utilization=0.95), 8)
