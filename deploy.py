"""Bring each host to what is declared for it. Staging is safe at any hour; only a wave touches what runs."""

from pyinfra import host

from pyinfra_vllm import fleet
from pyinfra_vllm.operations.util.together import ask_together

declared = fleet.declared()
mine = declared.hosts[host.name]
turns = {"rollout": declared.rollout, "serving": declared.serving, "overrides": declared.overrides}

ask_together(host, mine)

# Only now: they are loaded while the hosts answer.
from pyinfra_vllm.operations import (  # noqa: E402
    checkpoint,
    disk,
    preflight,
    program,
    release,
    runtime,
    share,
    switch,
)

program.installed(name="Prepare the host", root=mine.root, users=mine.users, metrics=mine.metrics)

for service in host.loop(mine.services):
    this = {"root": mine.root, "service": service, "checkpoint": declared.checkpoint(service)}
    preflight.passed(name=f"{service.name}: ask whether this host can serve it", **this)

disk.room(name="Check disk space", declared=mine, lock=declared.lock)

for service in host.loop(mine.services):
    runtime.present(name=f"{service.name}: install the runtime", root=mine.root, service=service)

for locked in host.loop(declared.shared):
    for step, what in host.loop(share.STEPS):
        step(name=f"{locked.repo}: {what}", declared=declared, checkpoint=locked)

for service in host.loop(mine.services):
    this = {"root": mine.root, "service": service, "checkpoint": declared.checkpoint(service)}
    checkpoint.present(
        name=f"{service.name}: download the checkpoint",
        verify=declared.overrides.verify,
        shared=mine.sources.path,
        **this,
    )
    release.staged(name=f"{service.name}: stage the release", **this)
    release.rehearsed(name=f"{service.name}: ask vLLM whether it accepts the release", service=service)

for number in host.loop(range(1, declared.waves + 1)):
    switch.wave(name=f"Wave {number}", number=number, **turns)

for number in host.loop(range(declared.waves_back, 0, -1)):
    switch.taken_back(
        name=f"Wave {number}, back if the rollout stopped", number=number, overrides=declared.overrides
    )
