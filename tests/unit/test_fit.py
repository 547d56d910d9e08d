"""The memory arithmetic against vLLM's own figures, and its behaviour at the edges."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_vllm import fit
from pyinfra_vllm.catalog import gpus, shapes, table
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


# The tokens of KV cache that six starts of vLLM 0.25.1 logged on an H100: docs/tuning.md
ON_AN_H100 = (
    ("Machete", 214_720),
    ("Marlin", 216_176),
    ("Machete", 215_344),
    ("Humming", 215_952),
    ("Machete", 215_344),
    ("Marlin", 216_800),
)


def test_the_uncertain_share_is_the_largest_difference_from_a_server_s_own_cache() -> None:
    """All of them are to the safe side. The largest of an H200 is 1.8 %."""
    card, model = gpus.find("H100"), shape("Qwen/Qwen3-32B-AWQ")
    off = []
    for kernel, tokens in ON_AN_H100:
        found = fit.predict(model, card, replace(STOCK, kernels=(kernel,)))
        off.append((tokens - found.kv_tokens) * found.kv_bytes_per_token / found.requested_bytes)
    share = table("runtimes.yaml")["memory"]["uncertain_share"]
    assert min(off) > 0 and max(off) == pytest.approx(0.032, abs=0.001)
    assert max(off) < share < max(off) + 0.005


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
    hybrid = shape("Qwen/Qwen3.5-4B")
    assert hybrid.state is not None and hybrid.state.layers == 24
    assert fit.state_bytes(hybrid, STOCK) == 48 * 1024 + 2 * 1024**2
    assert fit.state_bytes(shape("Qwen/Qwen3-4B"), STOCK) == 0


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


def test_a_pipeline_stage_has_its_layers_and_one_of_the_two_ends() -> None:
    model = shape("Qwen/Qwen3-32B-AWQ")
    whole, half = STOCK, replace(STOCK, pipeline_parallel_size=2)
    end = (
        model.vocabulary * model.hidden * 2 * 1.014
    )  # embedding or head, 16 bits; the loading share of runtimes.yaml
    layers = fit.weights_bytes(model, whole) - 2 * end
    assert fit.weights_bytes(model, half) == pytest.approx(layers / 2 + end, rel=0.001)
    assert fit.kv_bytes_per_token(model, half) == fit.kv_bytes_per_token(model, whole) // 2
    assert fit.graph_bytes(model, half) == fit.graph_bytes(model, whole) / 2
    uneven = replace(STOCK, pipeline_parallel_size=3)  # 64 layers: 21, 22 and 21
    assert fit.kv_bytes_per_token(model, uneven) == fit.kv_bytes_per_token(model, whole) * 22 // 64


def test_a_latent_cache_is_one_vector_for_each_layer() -> None:
    config = {
        "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128,
        "vocab_size": 129280, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "intermediate_size": 18432,
    }  # fmt: skip
    # a missing dtype means float32, which vLLM casts to 16 bits (config/model.py _resolve_auto_dtype)
    latent = shapes.from_config("x/y", config)
    assert fit.kv_bytes_per_token(latent, STOCK) == 61 * 576 * 2
    assert fit.kv_bytes_per_token(latent, replace(STOCK, dtype="float32")) == 61 * 576 * 4


def test_a_hybrid_keeps_a_state_more_with_prefix_caching_and_one_for_each_drafted_token() -> None:
    """vllm/v1/kv_cache_interface.py MambaSpec.max_memory_usage_bytes; the window:
    gated_delta_net_state_shape.
    """
    model, window, state = shape("Qwen/Qwen3.5-4B"), 16 * 1024, 2 * 1024**2
    for caching, drafted, states in ((False, 0, 1), (True, 0, 2), (False, 3, 4), (True, 3, 5)):
        load = replace(STOCK, prefix_caching=caching, speculative_tokens=drafted)
        assert fit.states_of_sequence(load) == states
        assert fit.state_bytes(model, load) == (3 + drafted) * window + state


def test_the_layer_that_drafts_has_weights_and_a_cache_of_its_own() -> None:
    """vllm/models/qwen3_5_mtp.py: full attention, an MLP and a projection of two hidden states to one."""
    model, drafting = shape("Qwen/Qwen3.5-4B"), replace(STOCK, draft_layers=1)
    assert fit.kv_bytes_per_token(model, drafting) == 32768 // 8 * 9
    more = fit.weights_bytes(model, drafting) - fit.weights_bytes(model, STOCK)
    layer = 2560 * 256 * (3 * 16 + 2 * 4) + 3 * 2560 * 9216 + 2 * 2560**2
    assert more == pytest.approx(2 * layer * 1.014, rel=0.001)


def test_weights_are_counted_in_the_type_they_are_served_in() -> None:
    """vllm/config/model.py _get_and_verify_dtype: 32 bits become 16 unless --dtype float32 says otherwise."""
    half = shape("Qwen/Qwen3-8B")
    size = fit.checkpoint_bytes(half)
    whole, unsaid, wrong = (
        replace(half, dtype="float32", weights_bytes=count) for count in (2 * size, None, size)
    )
    served = fit.weights_bytes(half, STOCK)
    for model in (whole, unsaid, wrong, replace(half, weights_bytes=size)):
        assert fit.weights_bytes(model, STOCK) == served
        assert fit.weights_bytes(model, replace(STOCK, dtype="float32")) == pytest.approx(2 * served)
    assert fit.kv_bytes_per_token(whole, STOCK) == fit.kv_bytes_per_token(half, STOCK)


def test_a_packed_model_in_32_bits_has_larger_embeddings_only() -> None:
    packed = shape("Qwen/Qwen3-8B-AWQ")
    wide = replace(STOCK, dtype="float32")
    counted = replace(packed, weights_bytes=fit.checkpoint_bytes(packed))
    more = 2 * 2 * 151936 * 4096 * 1.014
    for model in (packed, counted):
        found = fit.weights_bytes(model, wide) - fit.weights_bytes(model, STOCK)
        assert found == pytest.approx(more, rel=0.001)


def test_a_vision_tower_that_is_not_loaded_is_not_counted_where_its_size_is_known() -> None:
    model = shape("Qwen/Qwen3.5-4B")
    less = fit.weights_bytes(model, STOCK) - fit.weights_bytes(model, replace(STOCK, text_only=True))
    assert less == pytest.approx(330_000_000 * 2 * 1.014, rel=0.001)


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


@given(
    st.sampled_from(shapes.names()),
    st.sampled_from(["T4", "RTX 4090", "A40", "H200"]),
    st.integers(0, 4),
    st.booleans(),
)
def test_the_longest_context_is_one_that_fits_and_nearly_no_longer_one_does(
    model: str, gpu: str, drafted: int, caching: bool
) -> None:
    card = gpus.find(gpu)
    load = replace(
        STOCK, max_model_len=262144, max_num_seqs=64, speculative_tokens=drafted, prefix_caching=caching
    )
    longest = fit.longest(shape(model), fit.predict(shape(model), card, load), load)
    if longest:
        assert fit.predict(shape(model), card, replace(load, max_model_len=longest)).fits
    longer = longest + 512
    if longer <= shape(model).max_position:
        assert not fit.predict(shape(model), card, replace(load, max_model_len=longer)).fits


@pytest.mark.parametrize(
    ("preset", "layers", "heads", "size", "needed"),
    [
        ("turboquant_k8v4", 32, 8, 128, 3_951_034_368),
        ("turboquant_4bit_nc", 32, 8, 128, 3_040_870_400),
        ("turboquant_k3v4_nc", 32, 8, 128, 2_805_989_376),
        ("turboquant_3bit_nc", 32, 8, 128, 2_571_108_352),
        ("turboquant_k8v4", 16, 8, 64, 1_166_016_512),
        ("turboquant_4bit_nc", 30, 4, 256, 2_859_466_752),
    ],
)
def test_a_packed_cache_takes_what_vllm_itself_says(
    preset: str, layers: int, heads: int, size: int, needed: int
) -> None:
    """One request of 65536 tokens, by the grouping code of vLLM 0.32.0."""
    config = {
        "model_type": "llama", "num_hidden_layers": layers, "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": heads, "head_dim": size, "vocab_size": 32000,
    }  # fmt: skip
    load = replace(STOCK, max_model_len=65536, kv_cache_dtype=preset)
    model = shapes.from_config("a/b", config)
    assert fit.layout(model, load).request_bytes(65536) == needed
    assert fit.kv_bytes_per_token(model, load) * 65536 == needed


def test_a_packed_cache_beside_states_is_packed_in_every_layer() -> None:
    hybrid = shape("Qwen/Qwen3.5-4B")
    load = replace(STOCK, kv_cache_dtype="turboquant_k8v4")
    assert fit.kv_bytes_per_token(hybrid, load) == 8 * 4 * (256 + 128 + 4)


OSS = {
    "model_type": "gpt_oss", "num_hidden_layers": 36, "hidden_size": 2880, "intermediate_size": 2880,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 128,
    "num_experts_per_tok": 4, "vocab_size": 201088, "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip


def test_data_parallel_ranks_share_experts_that_are_as_wide_as_the_mlp() -> None:
    """gpt-oss-120b of 65.2 GB: of its 117e9 parameters 115e9 are those of experts, of 4 bits."""
    model = shapes.from_config("a/gpt-oss", OSS, 65_200_000_000)
    one, two = (
        fit.weights_bytes(model, replace(STOCK, data_parallel_size=ranks)) / 10**9 for ranks in (1, 2)
    )
    assert one == pytest.approx(66, abs=0.5)
    assert two == pytest.approx(37, abs=1)


def test_a_config_s_number_of_experts_goes_before_its_class_s_under_whatever_name() -> None:
    assert shapes.from_config("a/gpt-oss-20b", {**OSS, "num_local_experts": 32}).experts == 32


@pytest.mark.parametrize(("step", "parameters"), [(1, 98), (2, 57)])
def test_experts_of_every_second_layer_are_counted_once(step: int, parameters: int) -> None:
    """Llama 4 (models/llama4.py): experts of `intermediate_size`, the MLP between them of another key's."""
    config = {
        "model_type": "llama4_text", "hidden_size": 5120, "intermediate_size": 8192, "head_dim": 128,
        "intermediate_size_mlp": 16384, "num_hidden_layers": 48, "num_attention_heads": 40,
        "num_key_value_heads": 8, "num_local_experts": 16, "num_experts_per_tok": 1, "vocab_size": 202048,
        "interleave_moe_layer_step": step,
    }  # fmt: skip
    found = fit.linear_parameters(shapes.from_config("a/llama-4", config))
    assert found / 10**9 == pytest.approx(parameters, rel=0.03)


def test_a_step_of_experts_is_as_wide_as_those_that_a_token_is_sent_to() -> None:
    """Two of Mixtral's eight."""
    config = {"model_type": "mixtral", "num_experts_per_tok": 2, "vocab_size": 1000}
    peak = fit.peak_bytes(shapes.from_config("a/mixtral", config), STOCK)
    assert peak == STOCK.max_num_batched_tokens * (3 * 2 * 14336 + 4 * 4096) * 2


NEXT = {
    "model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"], "num_hidden_layers": 48,
    "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
    "vocab_size": 151936, "full_attention_interval": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, 1),
        ({"num_nextn_predict_layers": 0}, 0),
        ({"model_type": "longcat_flash"}, 1),
        ({"model_type": "step3p5", "num_nextn_predict_layers": 3}, 3),
        ({"model_type": "mimo_v2_flash", "architectures": ["MiMoV2FlashForCausalLM"]}, 1),
        ({"model_type": "minimax_m3_vl", "num_mtp_modules": 3}, 3),
        ({"model_type": "minimax_m2", "num_mtp_modules": 3}, 0),  # whose modules vLLM doesn't run
        ({"model_type": "qwen3"}, 0),
    ],
)
def test_classes_have_layers_that_draft_without_a_key_of_the_config(
    changes: dict[str, Any], layers: int
) -> None:
    assert shapes.from_config("a/next", {**NEXT, **changes}).mtp_layers == layers


def test_the_layer_that_drafts_for_qwen3_next_has_a_cache() -> None:
    model = shapes.from_config("a/next", NEXT)
    whole = fit.kv_bytes_per_token(model, STOCK)
    drafting = replace(STOCK, draft_layers=model.mtp_layers, speculative_tokens=2)
    assert fit.kv_bytes_per_token(model, drafting) == whole // 12 * 13
