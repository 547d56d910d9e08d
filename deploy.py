"""What each host must become. Staging is safe at any hour; only a wave touches what runs."""

from pyinfra import host

from pyinfra_vllm import fleet
from pyinfra_vllm import operations as vllm

rollout = fleet.declared()
mine = rollout.hosts[host.name]

vllm.host.ready(
    name="Prepare the host",
    root=mine.root,
    users=sorted({service.user for service in mine.services}),
)
vllm.disk.room(name="Check disk space", declared=mine, lock=rollout.lock)

for service in host.loop(mine.services):
    vllm.runtime.present(name=f"{service.name}: install the runtime", root=mine.root, service=service)
    vllm.checkpoint.present(
        name=f"{service.name}: download the checkpoint",
        root=mine.root,
        service=service,
        checkpoint=rollout.checkpoint(service),
        verify=rollout.overrides.verify,
    )
    vllm.release.staged(
        name=f"{service.name}: stage the release",
        root=mine.root,
        service=service,
        checkpoint=rollout.checkpoint(service),
    )

for number in host.loop(range(1, rollout.waves + 1)):
    vllm.switch.wave(name=f"Wave {number}", number=number, overrides=rollout.overrides)
