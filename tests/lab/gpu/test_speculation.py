"""How many tokens to draft: what `tune` chooses, beside all numbers measured one by one.

Weights are random, so nothing that they draft is right: vLLM's own synthetic acceptance takes the place of
that, with rates that vLLM's own tests measured on trained models (acceptance/sitecustomize.py). A host for
each part, so that they can run side by side on a card each.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lab.machine import Host
from lab.session import Lab

from . import looks
from .story import ENVIRONMENT, PLACE, Story, host, service

MODEL = "acme/Draft-8B"
FOLDER = "/opt/lab-acceptance"
TOKENS = (1, 2, 3)
CLOSE = 0.98  # of the best of all, at least
# As `calibrate` leaves it on a quiet H200, so that short looks and four pairs are enough.
NOISE: dict[str, Any] = {"schema": "pyinfra-vllm/noise/1", "runs": 5}


@dataclass(frozen=True)
class Traffic:
    """The objective of a tuning, and the share of drafted tokens that is accepted.

    rates: of tests/v1/spec_decode/test_acceptance_length.py in vLLM (MT-Bench, 80 prompts)
    """

    objective: str
    phase: str
    streams: tuple[int, ...]
    rates: tuple[float, ...]


TRAFFIC = {
    # RedHatAI/Llama-3.1-8B-Instruct-speculator.eagle3
    "one-stream": Traffic("latency", "c1", (1, 8), (0.7296, 0.5208, 0.3545)),
    # nm-testing/Speculator-Qwen3-30B-MOE-VL-Eagle3, which hardly helps
    "64-streams": Traffic("throughput", "c64", (1, 64), (0.29, 0.062, 0.0115)),
}


def declared(traffic: Traffic, **settings: Any) -> dict[str, Any]:
    """The service without speculation, whose gate keeps whatever speculation does."""
    whole = {"tokens_per_s": 0.9, "e2e_s": 9.0}
    alone = {**whole, "ttft_s": 9.0, "tpot_s": 9.0}  # which decide at one stream only
    return service(
        MODEL,
        objective=traffic.objective,
        environment={
            **ENVIRONMENT,
            "PYTHONPATH": FOLDER,
            "LAB_ACCEPTANCE": ",".join(str(rate) for rate in traffic.rates),
        },
        gate={
            "budget_s": 30,
            "concurrency": list(traffic.streams),
            "quality": False,  # random weights have no answers to lose
            "margins": {f"c{streams}": alone if streams == 1 else whole for streams in traffic.streams},
        },
        **settings,
    )


def prepare(solo: Host) -> None:
    text = (Path(__file__).parent / "acceptance/sitecustomize.py").read_text()
    solo.ssh(f"mkdir -p {FOLDER} && cat > {FOLDER}/sitecustomize.py <<'X'\n{text}X")


@pytest.mark.parametrize("name", TRAFFIC)
def test_every_number_of_drafted_tokens_is_measured(lab: Lab, name: str) -> None:
    traffic = TRAFFIC[name]
    with (
        host(lab, "drafting", 1, [MODEL]) as solo,
        Story(f"drafting-{name}", solo, {"chat": declared(traffic)}, "chat") as story,
    ):
        prepare(solo)
        story.install("first installation, nothing drafted")
        rates: dict[str, float] = {}
        story.facts["drafted"] = rates
        for tokens in TOKENS:
            step = story.deploy(f"{tokens} drafted", variants=[{"mtp": tokens}])
            story.ends(step, 0, "committed")
            row = _row(story, traffic.phase)
            rates.setdefault("0", row["before"])
            rates[str(tokens)] = row["after"]
            story.keep()


@pytest.mark.parametrize("name", TRAFFIC)
def test_tuning_chooses_how_many_tokens_to_draft(lab: Lab, name: str, tmp_path: Path) -> None:
    traffic = TRAFFIC[name]
    wanted = declared(traffic, tune={"only": [f"mtp-{tokens}" for tokens in TOKENS]})
    with (
        host(lab, "drafts", 1, [MODEL]) as solo,
        Story(f"drafts-{name}", solo, {"chat": wanted}, "chat") as story,
    ):
        prepare(solo)
        story.install("first installation, nothing drafted")
        noise = json.dumps({**NOISE, "phases": {traffic.phase: {"tokens_per_s": 0.02}}})
        solo.ssh(f"cat > {looks.ROOT}/chat/noise.json <<'X'\n{noise}\nX")
        release = looks.running(solo, "chat")
        step, told = story.tune(f"tune, for {traffic.objective}", tmp_path)
        story.facts["tuned"] = told
        story.must(step.exit_code == 0 and told.get("status") == "done", "the search is done", told)
        story.serves(release)


@pytest.mark.parametrize("name", TRAFFIC)
def test_the_choice_is_within_two_percent_of_the_best(name: str) -> None:
    rates = _kept(f"drafting-{name}")["drafted"]
    winner = _kept(f"drafts-{name}")["tuned"]["winner"]
    chosen = winner.removeprefix("mtp-") if winner else "0"
    assert set(rates) == {"0", *map(str, TOKENS)}
    assert rates[chosen] >= CLOSE * max(rates.values()), (winner, rates)
    if max(rates.values()) == rates["0"]:
        assert winner is None, rates


def _row(story: Story, phase: str) -> dict[str, Any]:
    """Tokens/s of the newest verdict."""
    file = story.place / f"{len(story.steps):02d}-chat-verdict.json"
    rows = json.loads(file.read_text())["metrics"]
    (row,) = [row for row in rows if (row["name"], row["phase"]) == ("tokens_per_s", phase)]
    return dict(row)


def _kept(name: str) -> dict[str, Any]:
    """The facts of a story."""
    return dict(json.loads((PLACE / f"{name}.json").read_text())["facts"])
