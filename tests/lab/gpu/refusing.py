"""A release that the host's own vLLM refuses beside the server: it is asked before anything is stopped."""

from __future__ import annotations

from .pulse import GpuMemory
from .story import Story

REHEARSAL_MIB, NOTICED = 1024, 0.05  # of GPU memory at most; so much slower and somebody would notice
REFUSED = {
    "max-long-partial-prefills": 2
}  # vLLM 0.25.1 has no concurrent partial prefill any more, and says so


def never_switched(story: Story) -> None:
    """VLLM's own reason comes before anything is stopped, first on the screen; the server beside it does not
    notice.
    """
    memory = GpuMemory(story.host)
    memory.begin()
    refused, told = story.deploy_beside_load("D (a flag that vLLM refuses)", 8000, flags=REFUSED)
    memory.end()
    taken = max(memory.used) - min(memory.used)
    story.facts["rehearsal"] = {**told, "gpu_mib": taken}
    story.must(taken < REHEARSAL_MIB, f"the question takes less than {REHEARSAL_MIB} MiB of the GPU", taken)
    least = (1 - NOTICED) * told["before"]["tokens_per_s"]
    unnoticed = told["meanwhile"]["failed"] == 0 and told["meanwhile"]["tokens_per_s"] >= least
    story.must(unnoticed, "the server did not notice the question", told)
    story.ends(refused, 1, None)
    story.must(refused.silent_s == 0, "it served all the time", refused.silent_s)
    screen = refused.said("does not accept release")[:5]
    story.facts["refused"] = screen
    story.must("Partial Prefill" in "\n".join(screen), "the root cause is on the screen first", screen)
