"""One GPU, Qwen3-32B AWQ shapes: installed, refused by vLLM, found worse, switched and kept, unchanged, taken
back.
"""

from __future__ import annotations

from typing import Any

from lab.session import Lab

from . import looks
from .refusing import never_switched
from .story import Story, host, service

MODEL = "Qwen/Qwen3-32B-AWQ"
QUICK = {"budget_s": 20, "quality": False}  # for the first installation, which nothing is compared with
STRICT = {"quality": False}  # random weights have no answers to lose
# docs/gate.md, "A trade, made knowingly": for whoever never asks 64 things at once.
FOR_LATENCY = {
    **STRICT,
    "margins": {
        "c1": {"ttft_s": 1.0},
        "c8": {"tokens_per_s": 0.10, "e2e_s": 0.15},
        "max": {"tokens_per_s": 0.45, "e2e_s": 0.9},
    },
}


def test_one_gpu_from_the_first_installation_to_the_way_back(lab: Lab) -> None:
    with (
        host(lab, "one", 1, [MODEL]) as solo,
        Story("one-gpu", solo, {"chat": service(MODEL, gate=QUICK)}, "chat") as story,
    ):
        story.install("A (throughput): first installation")
        story.look()
        story.plain_restart("A: systemctl restart")
        first = looks.running(solo, "chat")

        never_switched(story)
        story.serves(first)

        strict = story.deploy(
            "B (latency) under the default margins", objective="latency", flags={}, gate=STRICT
        )
        story.ends(strict, 1, "rolled_back", "fail")
        story.must("tokens_per_s" in strict.reason, "the reason names the metric", strict.reason)
        story.serves(first)

        kept = story.deploy("B (latency) with margins for one stream", gate=FOR_LATENCY)
        story.ends(kept, 0, "committed", "pass")
        second = looks.running(solo, "chat")
        story.must(second != first, "B serves", second)
        story.plain_restart("B: systemctl restart")

        worse = story.deploy("C (B with enforce-eager)", flags={"enforce-eager": True})
        story.ends(worse, 1, "rolled_back", "fail")
        story.serves(second)

        _nothing_to_do(story, {})
        story.ends(story.go_back("rollback.py"), 0, "committed")
        story.serves(first)


def _nothing_to_do(story: Story, flags: dict[str, Any]) -> None:
    before = looks.main_pid(story.host, "chat")
    same = story.deploy("B declared again", flags=flags)
    story.ends(same, 0, None)
    unmoved = looks.main_pid(story.host, "chat") == before and same.silent_s == 0
    story.must(unmoved, "nothing was restarted", same.silent_s)
