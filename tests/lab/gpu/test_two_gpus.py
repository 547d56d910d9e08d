"""Two GPUs of one host: shared by one service, then one service on each, of which one switches while the
other serves.
"""

from __future__ import annotations

import time

import pytest
from lab import gpus
from lab.session import Lab

from . import looks
from .pulse import Load
from .story import Story, host, service

SMALL = "Qwen/Qwen3-0.6B-AWQ"
LARGE = "Qwen/Qwen3-32B-AWQ"  # the speed of smaller ones is that of the processor, which both services share
EAGER = {"enforce-eager": True}  # without it vLLM first builds FlashInfer's all-reduce: 280 s and more
GRAPHS = {"max-cudagraph-capture-size": 64}  # as many as the gate asks at once; fewer to capture
GATE = {"budget_s": 20, "quality": False}  # for first installations, which nothing is compared with
DEFAULT_GATE = {"quality": False}  # random weights have no answers to lose
NOTICED = 0.05  # so much slower and somebody would notice

needs_two = pytest.mark.skipif(len(gpus.mine()) < 2, reason="two GPUs are needed")


@needs_two
def test_tensor_parallel_on_two_gpus(lab: Lab) -> None:
    declared = {"chat": service(SMALL, gpu_list=[0, 1], gate=GATE, flags=EAGER)}
    with host(lab, "both", 2, [SMALL]) as both, Story("tensor-parallel", both, declared, "chat") as story:
        story.install("first installation on two GPUs")
        story.look()
        story.plain_restart("systemctl restart on two GPUs")


@needs_two
def test_one_service_on_each_gpu(lab: Lab) -> None:
    declared = {
        "left": service(LARGE, 8001, [0], gate=GATE, flags=GRAPHS),
        "right": service(LARGE, 8002, [1], gate=GATE, flags=GRAPHS),
    }
    with host(lab, "pair", 2, [LARGE]) as pair, Story("two-services", pair, declared, "left") as story:
        installed = story.deploy("a service on each GPU")
        assert installed.exit_code == 0, installed.screen[-40:]
        for name in ("left", "right"):
            story.look(name)
        _third_is_refused(story)
        _switch_beside_a_load(story)


def _switch_beside_a_load(story: Story) -> None:
    """The other service's own tokens per second, before, while and after its neighbour is switched."""
    load = Load(story.host, 8002, "chat")
    load.begin()
    try:
        time.sleep(15)
        quiet = (time.monotonic() - 12, time.monotonic())
        begun = time.monotonic()
        environment = {**story.services["left"]["environment"], "D": "2"}
        step = story.deploy(
            "left switched while right serves", service="left", environment=environment, gate=DEFAULT_GATE
        )
        switched = (begun, time.monotonic())
        restart = time.monotonic()
        story.plain_restart("left: systemctl restart while right serves")
        restarted = (restart, time.monotonic())
    finally:
        load.end()
    told = {
        name: load.told(*when)
        for name, when in {"before": quiet, "switch": switched, "restart": restarted}.items()
    }
    story.facts["neighbour"] = told
    story.keep()
    story.ends(step, 0, "committed")
    least = (1 - NOTICED) * told["before"]["tokens_per_s"]
    unnoticed = all(each["failed"] == 0 and each["tokens_per_s"] >= least for each in told.values())
    story.must(unnoticed, "the other service did not notice", told)


def _third_is_refused(story: Story) -> None:
    """Declared by somebody who knows nothing of the other two: the host itself must know."""
    before, others = looks.main_pid(story.host, "right"), story.services
    story.services = {}
    settings = service(LARGE, 8003, [1], gate=GATE)
    step = story.deploy("a third service on a GPU in use", service="third", **settings)
    story.services = others
    told = [row for row in step.screen if "vllm-right.service" in row]
    refused = step.exit_code != 0 and step.outcome is None and bool(told)
    story.must(refused, "it is refused and told who uses the GPU", step.exit_code, step.screen[-20:])
    story.must(looks.main_pid(story.host, "right") == before, "who uses it goes on", before)
    story.facts["third"] = told[:2]
