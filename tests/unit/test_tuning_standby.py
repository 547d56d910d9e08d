"""Where a service's servers can't sleep, and the reason that is said."""

from __future__ import annotations

from typing import Any

import pytest

from pyinfra_vllm.tuning.standby import hindrances

H200, GB10 = "NVIDIA H200", "NVIDIA GB10"


def test_one_card_and_a_vllm_that_can_sleep_are_enough() -> None:
    flags = {"--kv-cache-dtype": "fp8", "--data-parallel-size": 1, "--max-num-seqs": 8}
    assert hindrances("0.25.1+cu129", [H200, H200], flags, {"VLLM_USE_RUST_FRONTEND": "0"}) == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "0.24.0"}, "vLLM 0.24.0 can't be sent to sleep under load, 0.25 and newer can"),
        ({"gpus": []}, "there is no NVIDIA GPU whose memory"),
        ({"gpus": [H200, GB10]}, "NVIDIA GB10 shares its memory with the host"),
        ({"flags": {"--api-server-count": 2}}, "--api-server-count 2 has several processes"),
        ({"flags": {"--data-parallel-size": "4"}}, "--data-parallel-size 4 has several processes"),
        ({"flags": {"--kv-transfer-config": {}}}, "--kv-transfer-config: with a KV connector"),
        ({"flags": {"--speculative-config": {"method": "ngram"}}}, "--speculative-config: "),
        ({"flags": {"--ssl-keyfile": "/k"}}, "vLLM's own TLS"),
        ({"flags": {"--enable-lora": True}, "version": "0.32.0"}, "--enable-lora: before vLLM 0.33"),
        (
            {"flags": {"--kv-cache-dtype": "fp8_e4m3"}, "version": "0.26.0", "has_state_layers": True},
            "--kv-cache-dtype fp8_e4m3: before vLLM 0.27 the wake fails",
        ),
        ({"environment": {"VLLM_USE_RUST_FRONTEND": "1"}}, "VLLM_USE_RUST_FRONTEND: "),
    ],
)
def test_each_condition_has_a_reason(changes: dict[str, Any], reason: str) -> None:
    asked: dict[str, Any] = {"version": "0.33.0", "gpus": [H200], "flags": {}, "environment": {}, **changes}
    (found,) = hindrances(**asked)
    assert found.startswith(reason)


def test_what_newer_versions_have_right_is_no_hindrance() -> None:
    assert hindrances("0.33.0", [H200], {"--enable-lora": True}, {}) == ()
    assert hindrances("0.27.0", [H200], {"--kv-cache-dtype": "fp8"}, {}, has_state_layers=True) == ()
    assert hindrances("0.26.0", [H200], {"--kv-cache-dtype": "fp8"}, {}) == ()
