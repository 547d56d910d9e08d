"""Likelihood of fixed texts: asking a server for it, and comparing two measurements."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import pytest
from bench_records import judge, phase, record, row
from hypothesis import given
from hypothesis import strategies as st
from openai_server import serving

from pyinfra_vllm.on_host.bench import likelihood
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.questions import PIECE_BYTES, Text, cut
from pyinfra_vllm.on_host.openai.client import Client

Measured = dict[str, Any]
SHORT = Text("t", "en", ("one two three", "four five"))


def measured(
    *texts: Text, compiler: str | None = "g++", **behaviour: Any
) -> tuple[list[Measured], dict[str, str], int]:
    """The findings, and what is missing, on a machine with that compiler, and how often the
    server was asked.
    """
    with pytest.MonkeyPatch.context() as patch, serving(**behaviour) as server:
        patch.setattr(likelihood.shutil, "which", lambda name: name if name == compiler else None)
        found, missing = likelihood.measure(Client(server.url, "m"), list(texts), time.perf_counter() + 5)
        bits: list[Measured] = [item.as_dict() for item in found]
        return bits, missing, sum("prompt_logprobs" in request for request in server.requests)


def test_built_in_texts_have_ten_kilobytes_in_two_languages() -> None:
    texts = likelihood.builtin(("en", "ja"))
    sizes = {
        language: sum(
            len(piece.encode()) for text in texts for piece in text.pieces if text.language == language
        )
        for language in ("en", "ja")
    }
    assert all(4_400 <= size <= 5_600 for size in sizes.values()), sizes
    assert [text.language for text in likelihood.builtin(("ja",))] == ["ja"] * 3


def test_bits_are_counted_for_each_piece() -> None:
    found, missing, asked = measured(SHORT, logprob=-math.log(2))
    assert (missing, asked) == ({}, 2)
    assert found == [
        {"text": "t", "language": "en", "bits_per_byte": round(3 / 22, 5), "tokens": 3, "pieces": [2.0, 1.0]}
    ]


@pytest.mark.parametrize("logprob", [math.nan, -math.inf])
def test_a_likelihood_that_is_no_number_is_named(logprob: float) -> None:
    found, missing, _ = measured(SHORT, logprob=logprob)
    assert found == [] and "token 2 of a piece is" in missing["t"]


def test_a_server_without_prompt_logprobs_is_named_for_each_text() -> None:
    found, missing, _ = measured(SHORT, Text("u", "en", ("six seven",)))
    assert found == [] and set(missing) == {"t", "u"}
    assert set(missing.values()) == {"the answer has no prompt_logprobs"}


@pytest.mark.parametrize(("compiler", "asked"), [("clang++", 2), (None, 0)])
def test_a_server_here_is_not_asked_where_vllm_could_not_compile_for_it(
    compiler: str | None, asked: int
) -> None:
    found, missing, times = measured(SHORT, compiler=compiler, logprob=-1.0)
    assert times == asked and bool(found) == bool(asked)
    assert asked or "no g++ or clang++" in missing["t"]


def test_another_machines_compiler_is_not_looked_for() -> None:
    assert not likelihood._why_not_asked("192.0.2.1") and likelihood._is_here("127.0.0.1")


def test_texts_that_there_is_no_time_for_are_named() -> None:
    with serving(logprob=-1.0) as server:
        found, missing = likelihood.measure(Client(server.url, "m"), [SHORT], time.perf_counter() - 1)
    assert found == [] and "time for quality was over" in missing["t"]


@given(st.text(max_size=3000))
def test_cutting_loses_nothing(text: str) -> None:
    pieces = cut(text)
    assert "".join(pieces) == text.strip() or not "".join(pieces).strip()
    assert all(len(piece.encode()) <= PIECE_BYTES * 2 + 4 for piece in pieces)


# Judging


def texts(*factors: float, noise: float = 0.0, seed: int = 0, pieces: int = 4) -> list[Measured]:
    """Two texts a factor, each of some pieces whose bits are their length times the factor, and noise."""
    draw = random.Random(seed)
    return [
        {
            "text": f"t{number}",
            "language": "en",
            "bits_per_byte": factor,
            "tokens": 100 * pieces,
            "pieces": [400 * factor * math.exp(draw.gauss(0, noise)) for _ in range(pieces)],
        }
        for number, factor in enumerate(factors)
    ]


def verdict(before: list[Measured], after: list[Measured] | None, **more: Any) -> dict[str, Any]:
    judged = judge(record(phase(1), likelihood=before), record(phase(1), likelihood=after, **more))
    return row(judged, "bits_per_byte", None)


SAME = (0.8,) * 6


@pytest.mark.parametrize(
    ("factor", "noise", "expected"),
    [
        (1.0, 0.0, "pass"),
        (0.95, 0.0, "pass"),
        (1.02, 0.0, "pass"),
        (1.0, 0.02, "pass"),
        (1.035, 0.0, "fail"),
        (1.035, 0.02, "fail"),
        (1.0, 0.2, "inconclusive"),
    ],
)
def test_more_bits(factor: float, noise: float, expected: str) -> None:
    found = verdict(texts(*SAME), texts(*(0.8 * factor for _ in SAME), noise=noise, seed=2))
    assert found["verdict"] == expected, found


def test_one_text_that_costs_far_more_is_not_drowned_by_a_long_one() -> None:
    found = verdict(texts(*SAME), texts(*SAME[:5], 0.8 * 1.4))
    assert found["ratio"] == pytest.approx(1.4 ** (1 / 6), abs=1e-4) and found["verdict"] != "pass"


@pytest.mark.parametrize("after", [None, []])
def test_a_likelihood_that_is_missing_after_is_inconclusive(after: Any) -> None:
    found = verdict(texts(*SAME), after, likelihood_missing={"t0": "HTTP 400: too long"})
    assert (found["verdict"], found["decides"]) == ("inconclusive", True)
    assert "HTTP 400: too long" in found["note"]


def test_one_text_that_is_missing_after_is_inconclusive_and_named() -> None:
    reason = "the log probability of token 7 of a piece is nan"
    found = verdict(texts(*SAME), texts(*SAME)[1:], likelihood_missing={"t0": reason})
    assert found["verdict"] == "inconclusive" and f"t0 ({reason})" in found["note"]


def test_records_without_pieces_are_compared_text_by_text() -> None:
    old = [{"text": f"t{number}", "bits_per_byte": 0.8} for number in range(4)]
    new = [{**item, "bits_per_byte": 1.2} for item in old]
    assert verdict(old, old)["verdict"] == "pass"
    assert verdict(old, new)["verdict"] == "fail"
    assert verdict(old[:1], new[:1])["verdict"] == "fail"


def test_perplexity_is_said_where_the_tokens_are_the_same() -> None:
    before, after = texts(*SAME), texts(*(0.8 * 1.05 for _ in SAME))  # 3.2 bits a token become 3.36
    note = verdict(before, after)["note"]
    assert "perplexity +11.7%" in note and "allowed is +3%, a perplexity of +7%" in note
    other = [{**item, "tokens": 1} for item in after]
    assert "perplexity +11.7%" not in verdict(before, other)["note"]


@pytest.mark.parametrize(("factor", "expected"), [(1.1, "pass"), (2.4, "fail")])
def test_english_of_a_first_installation(factor: float, expected: str) -> None:
    judged = judge(None, record(phase(1), likelihood=texts(factor, factor)))
    assert row(judged, "bits_per_byte_en", None)["verdict"] == judged["verdict"] == expected
    allowed = Criteria(max_bits_per_byte=None)
    assert judge(None, record(phase(1), likelihood=texts(factor, factor)), allowed)["verdict"] == "pass"


def test_a_baseline_without_likelihood_compares_nothing_and_says_why() -> None:
    before = record(phase(1), likelihood=[], likelihood_missing={"t0": "no g++", "t1": "no g++"})
    judged = judge(before, record(phase(1), likelihood=[], likelihood_missing={"t0": "no g++"}))
    assert judged["verdict"] == "pass"
    assert any("no likelihood of 2 texts before" in line and "no g++" in line for line in judged["reasons"])


@pytest.mark.thorough
@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=6), st.floats(1.0, 1.5), st.floats(1.0, 1.5))
def test_more_bits_never_make_a_better_verdict(factors: list[float], one: float, other: float) -> None:
    order = ("pass", "inconclusive", "fail")
    less, more = sorted((one, other))
    before = texts(*factors)
    verdicts = [
        verdict(before, texts(*(item * factor for item in factors)))["verdict"] for factor in (less, more)
    ]
    assert order.index(verdicts[0]) <= order.index(verdicts[1])
