"""Traffic from recorded /metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_vllm.config import Service
from pyinfra_vllm.tuning.workload import ANSWERS, NoTraffic, Traffic, answer, quantile
from pyinfra_vllm.tuning.workload import traffic as between

RECORDED = Path(__file__).parents[1] / "fixtures" / "gpu"
METRICS = (RECORDED / "h200-driver580-vllm0.25.1-qwen3-32b" / "metrics.txt").read_text()


def traffic(later: str, seconds: float, earlier: str | None = None) -> Traffic:
    return between(answer(later), seconds, None if earlier is None else answer(earlier))


def without_buckets(*ends: str) -> str:
    """The recorded metrics without the buckets of answers, or those of these upper bounds."""
    kept = [
        line
        for line in METRICS.splitlines()
        if not (
            line.startswith(f"{ANSWERS}_bucket") and (not ends or any(f'le="{end}"' in line for end in ends))
        )
    ]
    return "\n".join(kept)


def test_recorded_metrics_are_read() -> None:
    """458 requests with 144,670 prompt and 3,639 answer tokens, 754.4 s long together."""
    found = traffic(METRICS, 600.0)
    assert found.requests == 458
    assert 100 <= found.input_tokens <= 200
    assert 500 <= found.input_tokens_p90 <= 1000
    assert 5 <= found.output_tokens <= 10
    assert found.streams == pytest.approx(754.364 / 600)
    assert str(found).startswith("458 requests: prompts of about ")


@pytest.mark.parametrize("folder", sorted(path.name for path in RECORDED.iterdir()))
def test_every_recorded_server_is_read(folder: str) -> None:
    found = traffic((RECORDED / folder / "metrics.txt").read_text(), 600.0)
    assert found.requests > 200 and found.input_tokens >= 1 and found.streams > 0


def test_only_what_came_between_two_answers_counts() -> None:
    busier = METRICS
    for line in METRICS.splitlines():
        if line.startswith(
            ("vllm:request_prompt_tokens_", "vllm:request_generation_tokens_", "vllm:e2e_request")
        ):
            head, _, value = line.rpartition(" ")
            busier = busier.replace(line, f"{head} {2 * float(value)}")
    both = traffic(busier, 60.0, METRICS)
    alone = traffic(METRICS, 60.0)
    assert both == alone


@pytest.mark.parametrize(
    ("later", "seconds", "earlier", "said"),
    [
        ("", 1.0, None, "is it what vLLM answers at /metrics"),
        (METRICS, 60.0, "", "no process_start_time_seconds in it"),
        (METRICS, 60.0, "<html>502 Bad Gateway</html>", "no process_start_time_seconds in it"),
        (METRICS, 60.0, METRICS.replace(ANSWERS, "x"), "no vllm:request_generation_tokens in it"),
        (METRICS, 60.0, without_buckets(), "no buckets of vllm:request_generation_tokens"),
        (without_buckets(), 60.0, None, "no buckets of vllm:request_generation_tokens"),
        (without_buckets("+Inf"), 60.0, None, "no buckets of vllm:request_generation_tokens up to"),
        (METRICS.replace("le=", "xx="), 60.0, None, "a bucket of vllm:request_prompt_tokens can't be read"),
        (METRICS.replace('le="1.0"', 'le="abc"'), 60.0, None, "can't be read: .*le=\"abc\""),
        (METRICS.replace('le="1.0"', 'le="nan"'), 60.0, None, "can't be read"),
        (METRICS.replace("e2e_request_latency_seconds_sum", "x"), 60.0, None, "no vllm:e2e_request_latency"),
        (METRICS, 0.0, None, "must be the later one"),
        (METRICS, 60.0, METRICS, "0 requests say little"),
        (METRICS, 60.0, METRICS.replace("start_time_seconds 1.79", "start_time_seconds 1.78"), "restarted"),
        (METRICS.replace(ANSWERS, "x"), 60.0, None, "no vllm:request_generation_tokens in it"),
    ],
)  # fmt: skip
def test_what_says_nothing_is_told(later: str, seconds: float, earlier: str | None, said: str) -> None:
    with pytest.raises(NoTraffic, match=said):
        traffic(later, seconds, earlier)


def test_label_that_ends_like_the_bound_s_is_none() -> None:
    role = METRICS.replace('{engine="0"', '{role="a",engine="0"')
    assert role != METRICS and traffic(role, 600.0) == traffic(METRICS, 600.0)


@given(
    longest=st.integers(3, 8192),
    lengths=st.tuples(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 20_000)),
)
def test_gate_that_is_proposed_may_be_declared(longest: int, lengths: tuple[int, int, int]) -> None:
    """Buckets end beyond the longest request that there was, so a length may, too."""
    median, p90, answers = lengths
    found = Traffic(100, 60.0, median, max(median, p90), answers, answers, 1.0)
    gate = found.gate(longest)
    known = {"name": "chat", "model": "acme/m", "port": 8000, "runtime": {"version": "0.33.0"}}
    Service.model_validate({**known, "max_model_len": longest, "gate": gate})
    if max(median, p90) + max(2, answers) <= longest:
        assert gate == found.gate(None)


@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=300),
    share=st.floats(0.01, 1.0),
)
def test_quantile_lies_in_the_bucket_of_the_true_one(lengths: list[int], share: float) -> None:
    bounds = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, float("inf")]
    buckets = [(bound, float(sum(each <= bound for each in lengths))) for bound in bounds]
    true = sorted(lengths)[max(0, -(-int(share * len(lengths) * 10**9) // 10**9) - 1)]
    found = quantile(buckets, share)
    upper = next(bound for bound in bounds if true <= bound)
    lower = max((bound for bound in bounds if bound < true), default=0.0)
    if upper == float("inf"):
        assert found == 2000
    else:
        assert lower - 1 <= found <= upper + 1
