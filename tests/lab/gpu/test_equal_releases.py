"""The same service switched ten times between two equal releases: nothing may be found worse, doubt is the
exception.

The ten are shared between four hosts, so that they can run side by side on a card each.
"""

from __future__ import annotations

import pytest
from lab.session import Lab

from .story import Story, host, service

MODEL = "Qwen/Qwen3-32B-AWQ"  # a small one is as slow as the processor that drives it, and varies with it
SHARES = {"first": 3, "second": 3, "third": 2, "fourth": 2}  # switches of each host
DOUBTS = {"first": 1, "second": 0, "third": 0, "fourth": 0}  # of the ten, one may stay undecided
GRAPHS = {"max-cudagraph-capture-size": 64}  # as many as the gate asks at once; fewer to capture, ten times
QUICK = {"budget_s": 20, "quality": False}  # for the first installation, which nothing is compared with
GATE = {"quality": False}  # the default settings; random weights have no answers to lose


@pytest.mark.parametrize("share", SHARES)
def test_equal_releases_are_not_told_apart(lab: Lab, share: str) -> None:
    declared = {"chat": service(MODEL, gate=QUICK, flags=GRAPHS)}
    switches = SHARES[share]
    with (
        host(lab, "equal", 1, [MODEL]) as solo,
        Story(f"equal-releases-{share}", solo, declared, "chat") as story,
    ):
        story.install("installed")
        verdicts = []
        for number in range(1, switches + 1):
            # Another variable that nothing reads: another release, and equal.
            environment = {**story.services["chat"]["environment"], "DESCRIPTION": f"release {number}"}
            step = story.deploy(f"switch {number} of {switches}", environment=environment, gate=GATE)
            verdicts.append(step.verdict)
            story.facts["verdicts"] = verdicts
            story.keep()
        counted = {word: verdicts.count(word) for word in ("pass", "inconclusive", "fail")}
        kept = counted["fail"] == 0 and counted["inconclusive"] <= DOUBTS[share]
        story.must(kept, "equal releases are kept", counted)
        story.must(sum(counted.values()) == switches, "every switch came to a verdict", counted)
