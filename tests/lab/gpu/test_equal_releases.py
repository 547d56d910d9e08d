"""The same service switched ten times between two equal releases: nothing may be found worse, doubt is the
exception.
"""

from __future__ import annotations

from lab.session import Lab

from .story import Story, host, service

MODEL = "Qwen/Qwen3-32B-AWQ"  # a small one is as slow as the processor that drives it, and varies with it
SWITCHES = 10
GRAPHS = {"max-cudagraph-capture-size": 64}  # as many as the gate asks at once; fewer to capture, ten times
QUICK = {"budget_s": 20, "quality": False}  # for the first installation, which nothing is compared with
GATE = {"quality": False}  # the default settings; random weights have no answers to lose


def test_equal_releases_are_not_told_apart(lab: Lab) -> None:
    with (
        host(lab, "equal", 1, [MODEL]) as solo,
        Story("equal-releases", solo, {"chat": service(MODEL, gate=QUICK, flags=GRAPHS)}, "chat") as story,
    ):
        installed = story.deploy("installed")
        assert (installed.exit_code, installed.outcome) == (0, "committed"), installed.screen[-40:]
        story.plain_restart("systemctl restart")
        verdicts = []
        for number in range(1, SWITCHES + 1):
            # Another variable that nothing reads: another release, and equal.
            environment = {**story.services["chat"]["environment"], "DESCRIPTION": f"release {number}"}
            step = story.deploy(f"switch {number} of {SWITCHES}", environment=environment, gate=GATE)
            verdicts.append(step.verdict)
            story.facts["verdicts"] = verdicts
        counted = {word: verdicts.count(word) for word in ("pass", "inconclusive", "fail")}
        story.must(counted["fail"] == 0 and counted["inconclusive"] <= 1, "equal releases are kept", counted)
        story.must(sum(counted.values()) == SWITCHES, "every switch came to a verdict", counted)
