"""Recorded answers and likelihoods of a real language model (SmolLM2-135M-Instruct), good and damaged, judged
anew: benchmarks/quality says how they were recorded.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks/quality"))
import table

from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.gate import ladder

GPU, CPU = "answers-h200-vllm0.25.1.json.xz", "answers-cpu-vllm0.32.0.json.xz"
BITS, QUESTIONS, FORM = "bits_per_byte", "quality_points", "form"
# The criterion that has to see it, whatever else does.
DAMAGED = {
    "bits-2": BITS,
    "bits-3": BITS,
    "dead-early-layer": BITS,
    "dead-layer": BITS,
    "foreign-tokenizer": BITS,
    "half-zero": BITS,
    "permuted": BITS,
    "scales-5": BITS,
    "scales-10": BITS,
    "scales-20": BITS,
    "shifted-vocabulary": BITS,
    "zeros-off": QUESTIONS,  # its likelihoods are not numbers
    "no-assistant-turn": FORM,
    "foreign-template": FORM,
    "wrong-end": FORM,
}
# Of no use at all: without anything to compare with, too.
WORD_SALAD = ("bits-2", "foreign-tokenizer", "half-zero", "permuted", "shifted-vocabulary", "zeros-off")
KERNELS = ("awq-g64@marlin", "awq-g64@humming", "awq-g32@marlin", "awq-g32@humming")
PAIRS = [(table.BASE, table.BASE), ("float16", "float16"), *table.HARMLESS]


@cache
def kept(name: str = GPU) -> dict[str, Any]:
    return table.read(Path(table.__file__).parent / name)


def note_of(name: str, criterion: str) -> str:
    rows = ladder.rows(table.record(kept()[table.BASE]), table.record(kept()[name]), Criteria())
    return next(row.note for row in rows if row.name == criterion)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "criterion"), DAMAGED.items())
def test_damage_fails_by_the_criterion_that_is_made_for_it(name: str, criterion: str) -> None:
    verdict, by = table.judged(table.record(kept()[table.BASE]), table.record(kept()[name]))
    assert verdict == "fail" and criterion in by


@pytest.mark.parametrize(
    ("name", "verdict", "criterion"),
    [("awq-g32", "pass", None), ("dead-heads", "fail", BITS), ("wrong-end", "fail", FORM)],
)
def test_a_fresh_run_on_another_machine_says_the_same(name: str, verdict: str, criterion: str | None) -> None:
    before, after = kept(CPU)[table.BASE], kept(CPU)[name]
    assert len(after["runs"][0]) >= 130, "answered within five minutes on two cores"
    found, by = table.judged(table.record(before), table.record(after))
    assert found == verdict and (criterion is None or criterion in by)


def test_one_head_of_one_layer_is_no_damage() -> None:
    assert table.judged(table.record(kept()[table.BASE]), table.record(kept()["dead-head"])) == ("pass", [])


def test_the_reasons_of_a_wrong_template_and_a_wrong_end_name_them() -> None:
    assert "have a new defect (template)" in note_of("no-assistant-turn", FORM)
    assert "have a new defect (ran on until it was cut)" in note_of("wrong-end", FORM)


@pytest.mark.parametrize("name", WORD_SALAD)
def test_random_text_fails_as_a_first_installation(name: str) -> None:
    assert table.judged(None, table.record(kept()[name]))[0] == "fail"


@pytest.mark.parametrize("name", ["float16", "rtn-8", "awq-g64", "awq-g32", "rtn-5", "rtn-6"])
def test_a_good_checkpoint_passes_as_a_first_installation(name: str) -> None:
    assert table.judged(None, table.record(kept()[name])) == ("pass", [])


@pytest.mark.thorough
@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_twenty_runs_of_a_harmless_change_pass(before: str, after: str) -> None:
    runs = len(kept()[after]["runs"])
    assert runs == 20
    for run in range(runs):
        other = (run + 1) % runs
        found = table.judged(table.record(kept()[before], run), table.record(kept()[after], other))
        assert found == ("pass", []), (run, other)


@pytest.mark.thorough
@pytest.mark.parametrize("name", KERNELS)
def test_another_kernel_is_no_damage(name: str) -> None:
    base = kept()[name.partition("@")[0]]
    assert differ(base, kept()[name]) > 0, "the kernels answer otherwise"
    for run in range(3):
        for early in range(20):
            assert table.judged(table.record(base, early), table.record(kept()[name], run)) == ("pass", [])


def differ(one: dict[str, Any], other: dict[str, Any]) -> int:
    """How many of the first run's answers are not the same text."""
    answers = [{item["prompt"]: item["answer"] for item in side["runs"][0]} for side in (one, other)]
    return sum(1 for prompt, text in answers[0].items() if answers[1].get(prompt) != text)


@pytest.mark.thorough
@pytest.mark.parametrize("bits_per_token", [None, 2.6], ids=["this model's bits", "a strong model's"])
def test_a_perplexity_of_ten_percent_more_fails_and_an_unchanged_one_does_not(
    bits_per_token: float | None,
) -> None:
    measured = table.measured_in(kept()[table.BASE])
    spread = table.spread_of(kept()[table.BASE], kept()["scales-5"])
    worse = table.rises(measured, 1.1, spread, bits_per_token, 1000)
    assert worse.count("fail") >= 950
    unchanged = table.rises(measured, 1.0, spread, bits_per_token, 1000)
    assert unchanged.count("fail") <= 10
