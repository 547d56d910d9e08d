"""What a host must have before anything is put on it."""

from __future__ import annotations

from typing import Any

import pytest

from pyinfra_vllm.operations import program


def found(systemd: int) -> dict[str, Any]:
    return {"python": [3, 9, 2], "systemd": systemd, "program": None, "recovery_unit": None, "users": {}}


def test_a_token_needs_a_systemd_that_hands_it_over_unseen() -> None:
    problem = program._problem(found(245), token=True)
    assert problem is not None
    assert problem.startswith(
        "its systemd is 245; 247 or newer is needed to hand the Hub's token to a download unseen."
    )
    assert "Upgrade the host, or leave HF_TOKEN unset" in problem


@pytest.mark.parametrize(("systemd", "token"), [(245, False), (247, True), (257, True)])
def test_otherwise_an_older_one_will_do(systemd: int, token: bool) -> None:
    assert program._problem(found(systemd), token=token) is None
