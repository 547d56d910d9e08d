"""One GPU, Qwen3-32B AWQ shapes: installed, switched and kept, found worse, unchanged, an engine that can't
start, taken back.
"""

from __future__ import annotations

from lab.session import Lab

from . import looks
from .story import Step, Story, host, service

MODEL = "Qwen/Qwen3-32B-AWQ"
STRICT = {"budget_s": 20, "quality": False}
# docs/gate.md, "A trade, made knowingly": for whoever never asks 64 things at once.
FOR_LATENCY = {
    **STRICT,
    "margins": {
        "c1": {"ttft_s": 1.0},
        "c8": {"tokens_per_s": 0.10, "e2e_s": 0.15},
        "max": {"tokens_per_s": 0.45, "e2e_s": 0.9},
    },
}
REFUSED = {
    "max-long-partial-prefills": 2
}  # vLLM 0.25.1 has no concurrent partial prefill any more, and says so
BACK_WITHIN = 1.2  # plain restarts, from an engine that can't start


def test_one_gpu_from_the_first_installation_to_the_way_back(lab: Lab) -> None:
    with (
        host(lab, "one", 1, [MODEL]) as solo,
        Story("one-gpu", solo, {"chat": service(MODEL, gate=STRICT)}, "chat") as story,
    ):
        first = _installed(story)
        story.look()
        kept = story.deploy("B (latency) with margins for one stream", objective="latency", gate=FOR_LATENCY)
        story.ends(kept, 0, "committed", "pass")
        second = looks.running(solo, "chat")
        story.must(second != first, "B serves", second)
        story.plain_restart("B: systemctl restart")

        story.ends(
            story.deploy("C (B with enforce-eager)", flags={"enforce-eager": True}), 1, "rolled_back", "fail"
        )
        story.serves(second)

        before = looks.main_pid(solo, "chat")
        same = story.deploy("B declared again", flags={})
        story.ends(same, 0, None)
        story.must(
            looks.main_pid(solo, "chat") == before and same.silent_s == 0,
            "nothing was restarted",
            same.silent_s,
        )
        story.ends(story.go_back("rollback.py"), 0, "committed")
        story.serves(first)


def test_one_gpu_what_must_not_stay_goes_back(lab: Lab) -> None:
    with (
        host(lab, "strict", 1, [MODEL]) as solo,
        Story("one-gpu-back", solo, {"chat": service(MODEL, gate=STRICT)}, "chat") as story,
    ):
        first = _installed(story)
        refused = story.deploy("D (a flag that vLLM refuses)", flags=REFUSED)
        _cannot_start(story, refused)
        story.serves(first)

        strict = story.deploy("B (latency) under the default margins", objective="latency", flags={})
        story.ends(strict, 1, "rolled_back", "fail")
        story.must("tokens_per_s" in strict.reason, "the reason names the metric", strict.reason)
        story.serves(first)


def _installed(story: Story) -> str | None:
    """Release A, and a plain restart of it to compare with."""
    installed = story.deploy("A (throughput): first installation")
    assert (installed.exit_code, installed.outcome) == (0, "committed"), installed.screen[-40:]
    story.plain_restart("A: systemctl restart")
    return looks.running(story.host, "chat")


def _cannot_start(story: Story, refused: Step) -> None:
    story.ends(refused, 1, "rolled_back")
    times = refused.times or 0.0
    story.must(0 < times <= BACK_WITHIN, f"back within {BACK_WITHIN} plain restarts", times)
    told = refused.said("rolled_back: ")[:5]
    story.facts["refused"] = told
    story.must("Partial Prefill" in "\n".join(told), "the root cause is on the screen first", told)
