"""The host that is attacked: one for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import control, light_runtime
from lab.session import Lab

from .people import MALLORY, PLACE, Attacked


@pytest.fixture(scope="package")
def attacked(lab: Lab) -> Iterator[Attacked]:
    with control.own_lock_file():
        (host,) = lab.add("attacked")
        for release in ("a", "b"):
            declared = control.declared(release, **light_runtime.SETTINGS)
            done = control.pyinfra_vllm("lock", control.INVENTORY, env=declared)
            assert done.returncode == 0, done.stderr
        host.ssh(f"useradd --create-home {MALLORY} && mkdir -m 1777 {PLACE}")
        target = Attacked(host)
        target.deployed()
        target.releases.append(target.status()["current"])
        yield target
        lab.remove("attacked")


@pytest.fixture
def serving(attacked: Attacked) -> Attacked:
    """The host serves release a, whatever the test before did."""
    found = attacked.status()
    if found["active"] != "active" or {found["running"], found["current"]} != set(attacked.releases):
        attacked.deployed()
    return attacked
