"""The watch after a commit, with a clock of its own: what counts as dead, as worse, and as fine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bench_records import phase, record

from pyinfra_vllm.on_host import soak as soaking
from pyinfra_vllm.on_host.client import Refused
from pyinfra_vllm.on_host.criteria import Criteria

CRITERIA = Criteria(soak_s=300.0)
ERRORS = 'vllm:request_success_total{finished_reason="error"}'


class Server:
    """Counters as functions of the time that has passed; stands where the client stands."""

    def __init__(self, **metrics: Callable[[float], float]) -> None:
        self.now = 0.0
        self.silent_from = float("inf")
        self.counters = {
            "vllm:generation_tokens_total": metrics.get("tokens", lambda t: 50 * t),
            "vllm:num_requests_running": metrics.get("running", lambda t: 2),
            "vllm:num_preemptions_total": metrics.get("preemptions", lambda t: 0),
            ERRORS: metrics.get("errors", lambda t: 0),
        }

    def metrics(self) -> dict[str, float]:
        if self.now >= self.silent_from:
            raise Refused("gone")
        return {name: float(value(self.now)) for name, value in self.counters.items()}

    def health(self) -> bool:
        return self.now < self.silent_from

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def watched(server: Server, criteria: Criteria = CRITERIA, baseline: Any = None) -> dict[str, Any]:
    client: Any = server
    return soaking.soak(client, criteria, baseline, clock=lambda: server.now, sleep=server.sleep)


def test_a_healthy_server_passes_after_the_whole_time() -> None:
    found = watched(Server(), baseline=record(phase(1)))
    assert found["verdict"] == "pass" and found["watched_s"] >= 300 and found["output_tokens"] >= 300 * 50


def test_requests_without_tokens_are_a_dead_server_whatever_health_says() -> None:
    found = watched(Server(tokens=lambda t: 50 * min(t, 100)))
    assert found["verdict"] == "fail" and 155 <= found["watched_s"] <= 170
    assert "without one token, while /health says 200" in found["reasons"][0]


def test_an_idle_server_is_not_a_dead_one() -> None:
    assert watched(Server(tokens=lambda t: 0, running=lambda t: 0))["verdict"] == "pass"


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"errors": lambda t: t // 100}, "1 requests ended by an error, allowed are 0"),
        ({"preemptions": lambda t: 3 * t}, "preemptions a minute, allowed are 60"),
        ({"tokens": lambda t: 50 * t if t < 100 else 50 * (t - 100)}, "vLLM was restarted"),
    ],
)
def test_what_piles_up_is_named(metrics: dict[str, Any], said: str) -> None:
    found = watched(Server(**metrics))
    assert found["verdict"] == "fail" and said in found["reasons"][0]


def test_traffic_far_below_what_the_gate_measured_fails() -> None:
    """The gate saw 96 tokens/s at one stream; two streams that share 20 are no server worth keeping."""
    found = watched(Server(tokens=lambda t: 20 * t), baseline=record(phase(1)))
    assert (
        found["verdict"] == "fail"
        and "20.0 tokens/s under real traffic, at least 48.1" in found["reasons"][0]
    )


def test_one_missed_reading_is_forgiven_and_three_are_not() -> None:
    server = Server()
    server.silent_from = 100.0
    found = watched(server)
    assert found["verdict"] == "fail" and "did not answer 3 times" in found["reasons"][0]


def test_a_server_without_metrics_is_a_reason_and_no_exception() -> None:
    server = Server()
    server.silent_from = 0.0
    assert watched(server)["reasons"] == ["/metrics could not be read when the watch began"]
