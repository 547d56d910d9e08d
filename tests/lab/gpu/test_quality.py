"""The lab's trained checkpoint on a GPU: what it answers right is measured there too, and a broken one goes
back by it.
"""

from __future__ import annotations

from typing import Any

from lab import serving
from lab.session import Lab

from . import looks
from .story import ENVIRONMENT, Story, host, service

SETTINGS: dict[str, Any] = {
    "served_model_name": "tiny",
    "max_model_len": 2048,
    "environment": ENVIRONMENT,
    "flags": {"enforce-eager": True, "kv-cache-memory-bytes": 1 << 30},
    "gate": {
        "budget_s": 20,
        "quality_builtin": False,
        "quality_prompts": "tests/lab/lab/training/questions.jsonl",
    },
}


def test_a_broken_checkpoint_goes_back_by_its_answers(lab: Lab) -> None:
    with (
        host(lab, "small", 1, []) as small,
        Story("quality", small, {"tiny": service("lab/good-a", **SETTINGS)}, "tiny") as story,
    ):
        story.install("good-a: first installation")
        story.facts["right"] = serving.share_right(small)
        story.must(story.facts["right"] >= 0.95, "it answers what it was trained for", story.facts["right"])
        first = looks.running(small, "tiny")
        story.plain_restart("systemctl restart")
        broken = story.deploy("broken: wrong zero points", model="lab/broken")
        story.ends(broken, 1, "rolled_back", "fail")
        story.must("quality_points: " in broken.reason, "the reason names the quality", broken.reason)
        story.serves(first)
