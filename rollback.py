"""The runbook's one command: back to the previous release, or to `--data release=ID`, now.

`pyinfra inventory/prod.py rollback.py --limit HOST`. It asks the host what it has and needs no valid declaration.
"""

from pyinfra import host

from pyinfra_vllm import fleet, operations as vllm

root = fleet.root(host)

for service in host.loop(vllm.switch.services(host, root)):
    vllm.switch.back(
        name=f"Roll {service} back",
        root=root,
        service=service,
        release=host.data.get("release"),
        overrides=fleet.overrides(host),
    )
