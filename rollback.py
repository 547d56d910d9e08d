"""The runbook's one command: back to the previous release, or to `--data release=ID`, now.

`pyinfra inventory/prod.py rollback.py --limit HOST`. It asks the host what it has and needs no valid
declaration.
"""

from pyinfra import host

from pyinfra_vllm import fleet
from pyinfra_vllm.operations import switch

root = fleet.root_of(host)
said = fleet.way_back()

switch.can_go_back(name="Find what to roll back", root=root, service=said.service)

for service in host.loop(switch.services(root)):
    if said.service in (None, service):
        switch.back(
            name=f"Roll {service} back",
            root=root,
            service=service,
            release=said.release,
            overrides=said.overrides,
        )
