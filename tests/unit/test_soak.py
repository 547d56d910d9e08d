"""The watch after a commit, with a clock of its own: what counts as dead, as worse, and as fine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bench_records import phase, record

from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.record import Record
from pyinfra_vllm.on_host.gate import soak as soaking
from pyinfra_vllm.on_host.openai.client import HttpError, Refused, TimedOut

CRITERIA = Criteria(soak_s=300.0)
ERRORS = 'vllm:request_success_total{finished_reason="error"}'
ANSWERS = 'http_requests_total{handler="/v1/completions",method="POST",status="%sxx"}'


class Server:
    """Counters as functions of the time that has passed; stands where the client stands."""

    def __init__(self, **metrics: Callable[[float], float]) -> None:
        self.now = 0.0
        self.silent_from = float("inf")
        self.missed: set[int] = set()  # readings that get no answer, counted from 1
        self.readings = 0
        self.asked: list[float] = []
        self.dead_from = float("inf")  # makes no token any more, for whomever
        self.counters = {
            "vllm:generation_tokens_total": metrics.get("tokens", lambda t: 50 * t),
            "vllm:num_requests_running": metrics.get("running", lambda t: 2),
            "vllm:num_preemptions_total": metrics.get("preemptions", lambda t: 0),
            "vllm:prompt_tokens_total": metrics.get("prompts", lambda t: 0),
            "vllm:num_requests_waiting": metrics.get("waiting", lambda t: 0),
            ERRORS: metrics.get("errors", lambda t: 0),
            ANSWERS % 5: metrics.get("http_5xx", lambda t: 0),
            ANSWERS % 4: metrics.get("http_4xx", lambda t: 0),
        }

    def metrics(self) -> dict[str, float]:
        self.readings += 1
        if self.now >= self.silent_from or self.readings in self.missed:
            raise Refused("gone")
        return {name: float(value(self.now)) for name, value in self.counters.items()}

    def health(self) -> bool:
        return self.now < self.silent_from

    def check_generation(self, timeout_s: float) -> dict[str, Any]:
        """One that has requests and makes no tokens of them makes none for the watch either."""
        self.asked.append(self.now)
        stuck = self.counters["vllm:num_requests_running"](self.now) > 0 and not self._makes_tokens()
        if stuck or self.now >= self.dead_from:
            raise TimedOut(f"no complete answer within {timeout_s:.1f} s")
        return {}

    def _makes_tokens(self) -> bool:
        tokens = self.counters["vllm:generation_tokens_total"]
        return tokens(self.now + 1) > tokens(self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def watched(server: Server, criteria: Criteria = CRITERIA, baseline: Any = None) -> dict[str, Any]:
    client: Any = server
    known = None if baseline is None else Record.read(baseline, "baseline")
    return vars(soaking.soak(client, criteria, known, clock=lambda: server.now, sleep=server.sleep))


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


# A token of its own


def test_requests_that_wait_and_are_never_begun_are_no_idle_server() -> None:
    server = Server(tokens=lambda t: 0, running=lambda t: 0, waiting=lambda t: 5)
    server.dead_from = 0.0
    found = watched(server)
    assert found["verdict"] == "fail" and "requests were under way for 60 s" in found["reasons"][0]


def test_an_idle_server_is_asked_for_a_token_and_a_dead_one_gives_none() -> None:
    server = Server(tokens=lambda t: 0, running=lambda t: 0)
    server.dead_from = 150.0
    found = watched(server)
    assert found["verdict"] == "fail" and "nobody asked for 60 s" in found["reasons"][0]
    assert "asked for one, it gave none (no complete answer within 30.0 s)" in found["reasons"][0]
    assert server.asked == [60.0, 120.0, 180.0]


def test_a_watch_too_short_for_a_stall_asks_once_where_nobody_else_did() -> None:
    server = Server(tokens=lambda t: 0, running=lambda t: 0)
    assert watched(server, Criteria(soak_s=20.0))["verdict"] == "pass" and len(server.asked) == 1
    server.dead_from = 0.0
    assert watched(server, Criteria(soak_s=20.0))["verdict"] == "fail"


def test_a_server_that_is_busy_with_tokens_is_not_asked() -> None:
    server = Server()
    watched(server)
    assert server.asked == []


# Errors and work


def test_answers_of_5xx_are_errors_and_those_of_4xx_are_the_client_s() -> None:
    found = watched(Server(http_5xx=lambda t: t // 100))
    assert found["verdict"] == "fail" and "1 requests ended by an error, allowed are 0" in found["reasons"][0]
    assert watched(Server(http_4xx=lambda t: t))["verdict"] == "pass"


def test_an_error_that_the_engine_and_its_answer_both_count_is_one() -> None:
    server = Server(http_5xx=lambda t: t // 100, errors=lambda t: t // 100)
    assert watched(server, Criteria(soak_s=300.0, soak_max_errors=3))["errors"] == 3


def test_long_prompts_with_short_answers_are_work_and_progress() -> None:
    """Hardly an output token, and 4000 prompt tokens a second."""
    server = Server(tokens=lambda t: 2 * t, prompts=lambda t: 4000 * t)
    assert watched(server, baseline=record(phase(1)))["verdict"] == "pass"
    prefill = Server(tokens=lambda t: t // 200, prompts=lambda t: 4000 * t)
    assert watched(prefill, baseline=record(phase(1)))["verdict"] == "pass" and prefill.asked == []
    slow = Server(tokens=lambda t: 2 * t, prompts=lambda t: 100 * t)
    assert watched(slow, baseline=record(phase(1)))["verdict"] == "fail"


# What can't be watched


@pytest.mark.parametrize("missed", [{1}, {1, 2}, {4}, {4, 5, 7}])
def test_readings_missed_now_and_then_are_forgiven_at_any_time(missed: set[int]) -> None:
    server = Server()
    server.missed = missed
    assert watched(server)["verdict"] == "pass"


def test_server_without_vllm_counters_is_inconclusive_and_alerts() -> None:
    server = Server()
    server.counters = {"python_info": lambda t: 1}
    found = watched(server)
    assert found["verdict"] == "inconclusive"
    assert found["reasons"] == [
        "/metrics has no vllm:generation_tokens_total, so nobody watches this release"
    ]


def test_a_server_without_the_page_is_no_worse_either(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(this: Server) -> dict[str, float]:
        raise HttpError(404, "Not Found")

    monkeypatch.setattr(Server, "metrics", none)
    found = watched(Server())
    assert found["verdict"] == "inconclusive" and "HTTP 404" in found["reasons"][0]


def test_one_missed_reading_is_forgiven_and_three_are_not() -> None:
    server = Server()
    server.silent_from = 100.0
    found = watched(server)
    assert found["verdict"] == "fail" and "did not answer 3 times" in found["reasons"][0]


def test_a_server_without_metrics_is_a_reason_and_no_exception() -> None:
    server = Server()
    server.silent_from = 0.0
    assert watched(server)["reasons"] == ["/metrics could not be read when the watch began"]
