"""`standby: true`: an equal release is kept and a slower one goes back, while a client asks all the time."""

from __future__ import annotations

from lab.session import Lab

from . import looks
from .story import Story, host, service

MODEL = "Qwen/Qwen3-8B-AWQ"
GRAPHS = {"max-cudagraph-capture-size": 64}  # as many as the gate asks at once
GATE = {"budget_s": 30, "quality": False}  # random weights have no answers to lose


def test_nobody_is_refused_while_a_release_is_judged_beside_the_one_that_sleeps(lab: Lab) -> None:
    declared = {"chat": service(MODEL, gate=GATE, flags=GRAPHS, standby=True)}
    with host(lab, "standby", 1, [MODEL]) as solo, Story("standby", solo, declared, "chat") as story:
        story.install("first installation")

        # Another variable that nothing reads: another release, and equal.
        environment = {**story.services["chat"]["environment"], "DESCRIPTION": "another"}
        kept, load = story.deploy_beside_load("an equal release", 8000, environment=environment)
        story.facts["kept"] = load
        story.ends(kept, 0, "committed", "pass")
        second = looks.running(solo, "chat")
        story.must(load["meanwhile"]["failed"] == 0, "no request failed while it was switched", load)

        slower = {**GRAPHS, "enforce-eager": True}
        back, load = story.deploy_beside_load("a slower release", 8000, flags=slower)
        story.facts["went_back"] = load
        story.ends(back, 1, "rolled_back", "fail")
        story.serves(second)
        story.must(load["meanwhile"]["failed"] == 0, "no request failed while it went back", load)
