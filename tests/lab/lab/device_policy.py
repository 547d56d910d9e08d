"""Which device nodes a process of a unit may open: asked by opening them from within the unit's own control
group.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from .machine import Host

# Nodes that a GPU server has no business with, and whose opening changes nothing.
OTHERS = ("/dev/fuse", "/dev/net/tun", "/dev/kmsg", "/dev/loop-control", "/dev/kvm")
_OPENER = """
import errno, json, os, sys
place, nodes = sys.argv[1], sys.argv[2:]
if place:
    with open(place + "/cgroup.procs", "w") as procs:
        procs.write("0")
found = {}
for node in nodes:
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_NONBLOCK))
        found[node] = "open"
    except OSError as error:
        found[node] = errno.errorcode[error.errno]
print(json.dumps(found))
"""


def applies(host: Host) -> bool:
    """Whether the host's systemd can have the kernel refuse devices: control groups of version 2."""
    return host.ssh("stat -fc %T /sys/fs/cgroup").stdout.strip() == "cgroup2fs"


def opened(host: Host, nodes: Sequence[str], unit: str | None = None) -> dict[str, str]:
    """`open`, or the error's name, for each node: for root in the unit, or outside of all units."""
    place = ""
    if unit:
        place = (
            "/sys/fs/cgroup" + host.ssh(f"systemctl show -P ControlGroup {shlex.quote(unit)}").stdout.strip()
        )
    words = ["python3", "-c", _OPENER, place, *nodes]
    return dict(json.loads(host.ssh(shlex.join(words)).stdout))
