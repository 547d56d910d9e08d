"""The server's own figures of its KV cache, by version: from /metrics, else from the log."""

from __future__ import annotations

from pyinfra_vllm.on_host.server.kv_cache import measured


def test_the_labels_of_a_newer_server() -> None:
    name = 'vllm:cache_config_info{block_size="128",kv_cache_max_concurrency="7.98",kv_cache_size_tokens="4096",num_gpu_blocks="32"}'  # noqa: E501
    assert measured([name, "vllm:num_requests_running"], []) == {
        "block_size": 128,
        "max_concurrency": 7.98,
        "tokens": 4096,
        "blocks": 32,
    }


def test_an_older_server_says_it_in_its_log() -> None:
    lines = [
        "(EngineCore pid=1596) INFO 11-21 05:26:29 [kv_cache_utils.py:2146] GPU KV cache size: 443,760 tokens"
    ]
    name = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"}'
    assert measured([name], lines) == {"block_size": 16, "tokens": 443760}


def test_a_server_that_says_nothing_has_no_figures() -> None:
    assert measured([], ["something else"]) == {}
