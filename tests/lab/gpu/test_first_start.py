"""The next checkpoint of a model, rolled out with the compiled kernels of the one before, against the same
release's first start by hand.
"""

from __future__ import annotations

from lab import shapes
from lab.session import Lab

from .refusing import never_switched
from .story import Story, host, service

MODEL = "Qwen/Qwen3-8B-AWQ"
MOST = 0.6  # of the seconds without service of a first start by hand
GRAPHS = {"max-cudagraph-capture-size": 64}  # as many as the gate asks at once
QUICK = {"budget_s": 10, "quality": False}  # for the first installation, which nothing is compared with
GATE = {"budget_s": 20, "quality": False}  # random weights have no answers to lose


def test_next_checkpoint_starts_with_the_compiled_kernels_of_the_one_before(lab: Lab) -> None:
    declared = {"chat": service(MODEL, gate=QUICK, flags=GRAPHS, stable_paths=True)}
    with host(lab, "first", 1, [MODEL]) as solo, Story("first-start", solo, declared, "chat") as story:
        story.install("first installation")
        never_switched(story)
        lab.hub.publish(MODEL, shapes.retrained(MODEL))
        switched = story.deploy("the next checkpoint", flags=GRAPHS, gate=GATE)
        story.ends(switched, 0, "committed", "pass")
        by_hand = story.first_start_by_hand("the same release started by hand for the first time")
        ratio = round(switched.silent_s / by_hand.silent_s, 2)
        story.facts["first_start"] = ratio
        story.must(ratio <= MOST, f"its first start at most {MOST} times that by hand", ratio)
