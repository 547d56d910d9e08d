"""Colleagues who do something of their own to the service in the middle of a switch, as one does who knows of
none.
"""

from __future__ import annotations

import json

from pyinfra_vllm.on_host.switch.order import ROLLBACK

from .fault import Act, Fault, Scene
from .ground import ROOT, UNIT, Ground

_EDIT = f"""
unit=/etc/systemd/system/{UNIT}
{{ cat "$unit"; echo '# edited by a colleague'; }} >"$unit.new" && mv -f "$unit.new" "$unit" && systemctl daemon-reload
"""  # noqa: E501
_MASK = f"ln -sfn /dev/null /etc/systemd/system/{UNIT} && systemctl daemon-reload"
# As it was before: the tests' own tidying, for the next case on this host.
_TIDY = f"""
cd /etc/systemd/system || exit
wanted={ROOT}/tiny/current/vllm.service
[ "$(readlink {UNIT})" = "$wanted" ] || {{ rm -f {UNIT}; ln -s "$wanted" {UNIT}; }}
mkdir -p multi-user.target.wants
ln -sfn "$PWD/{UNIT}" multi-user.target.wants/{UNIT}
systemctl daemon-reload
"""


class Stolen(AssertionError):
    """A lock that was held did not hold."""


def second_operator(ground: Ground, scene: Scene) -> None:
    """Somebody else orders another switch of the same service, past the unit's name."""
    order = ground.order(scene.old, operator="bob@elsewhere", purpose=ROLLBACK)
    ground.write("/run/second.json", json.dumps(order.as_dict()))
    said = ground.inside(
        "sh", "-c", f"python3 {ROOT}/bin/on-host.pyz switch /run/second.json 2>&1; echo status $?"
    )
    if "faults@test has held this service since" not in said or "status 1" not in said:
        raise Stolen(f"a second switch was not refused: {said}")


def recovery_beside(ground: Ground, scene: Scene) -> None:
    """Somebody runs `recover` by hand while a switch is under way."""
    said = ground.inside("sh", "-c", f"python3 {ROOT}/bin/on-host.pyz recover 2>&1; echo status $?")
    if "has held this service since" not in said:
        raise Stolen(f"recovery did not leave a live switch alone: {said}")


def _types(*words: str) -> Act:
    """Done while the switch is under way.

    What people do to a service afterwards is their will, and nobody undoes it.
    """

    def strike(ground: Ground, scene: Scene) -> None:
        if not any(entry["step"] in ("commit", "end") for entry in ground.entries()):
            ground.inside(*words, check=False)

    return strike


def tidy(ground: Ground, scene: Scene) -> None:
    ground.inside("sh", "-c", _TIDY)


PEOPLE: dict[str, Fault] = {
    "second-operator": Fault("a second operator's switch", second_operator),
    "second-recovery": Fault("recovery by hand beside it", recovery_beside),
    "edit": Fault("a colleague's `systemctl edit --full`", _types("sh", "-c", _EDIT), tidy),
    "mask": Fault("a colleague masks the unit", _types("sh", "-c", _MASK), tidy),
    "disable": Fault("a colleague's `systemctl disable`", _types("systemctl", "disable", UNIT), tidy),
    "stop": Fault("a colleague's `systemctl stop`", _types("systemctl", "stop", UNIT)),
    "restart": Fault("a colleague's `systemctl restart`", _types("systemctl", "restart", UNIT)),
}
