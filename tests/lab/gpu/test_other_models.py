"""A model that the catalog doesn't know, in three ways of publishing it: float16, FP8 and GPTQ."""

from __future__ import annotations

import json

from lab.session import Lab

from . import looks
from .refusing import never_switched
from .story import Story, host, service

# So large that the card limits a stream. One of 2B is limited by the processor, and was 9 and 13 % slower
# while 16 virtual CPUs did anything else at all (docs/tuning.md).
MODEL = "acme/House-8B"
QUANTIZED = {"-FP8": "FP8", "-GPTQ-Int4": "GPTQ"}
# What is asked here is whether it is rolled out, and with its fast kernel. That a small model's two formats
# are equally fast is not promised by anyone.
GATE = {
    "budget_s": 30,
    "quality": False,  # random weights have no answers to lose
    "throughput_margin": 0.5,
    "ttft_margin": 0.9,
    "tpot_margin": 0.9,
}


def test_a_model_outside_the_catalog_is_rolled_out_as_fp8_and_gptq(lab: Lab) -> None:
    models = [MODEL, *(MODEL + name for name in QUANTIZED)]
    with (
        host(lab, "other", 1, models) as solo,
        Story("other-models", solo, {"chat": service(MODEL, gate=GATE)}, "chat") as story,
    ):
        story.install("float16: first installation")
        story.look()
        first = looks.running(solo, "chat")
        never_switched(story)
        story.serves(first)
        kernels: dict[str, str] = {}
        for name, title in QUANTIZED.items():
            story.ends(story.deploy(title, model=MODEL + name, flags={}), 0, "committed", "pass")
            kernels[name.lstrip("-")] = told = _kernel(story)
            story.facts["kernels"] = kernels
            story.must(told.startswith("pass"), f"the kernel of {title}", told)
            story.look()


def _kernel(story: Story) -> str:
    """Verdict and reason of the kernel in the newest verdict."""
    (file,) = sorted(story.place.glob(f"{len(story.steps):02d}-*-verdict.json"))
    rows = json.loads(file.read_text())["metrics"]
    (row,) = [row for row in rows if row["name"] == "kernel"]
    return f"{row['verdict']}: {row.get('note', '')}"
