"""The runbook's one command: back to the previous release, or to `--data release=ID`, now.

`pyinfra inventory/prod.py rollback.py --limit HOST`. It asks the host what it has and needs no valid declaration.
"""

from pyinfra import host

from pyinfra_vllm import fleet
from pyinfra_vllm.facts.service import Services
from pyinfra_vllm.operations import switch

root = host.data.get("root", fleet.DEFAULT_ROOT)
wanted = host.data.get("service")

for service in host.loop(host.get_fact(Services, root=root)):
    if wanted in (None, service):
        switch.back(
            name=f"Roll {service} back",
            root=root,
            service=service,
            release=host.data.get("release"),
            overrides=fleet.spoken(),
        )
