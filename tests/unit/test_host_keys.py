"""No example believes whoever answers: the keys of hosts are verified in everything that people copy from
here.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyinfra_vllm.asking import Hosts

PROJECT = Path(__file__).resolve().parents[2]
# pyinfra's and OpenSSH's ways of accepting a key unseen; `"yes"` is the one value that verifies.
LAX = re.compile(
    r"""strict_?host_?key_?checking\W*(?!\W*yes)\w|accept-new|UserKnownHostsFile\W*/dev/null""", re.IGNORECASE
)
COPIED = [
    PROJECT / "README.md",
    *(
        path
        for folder in ("docs", "inventory", "group_data")
        for path in sorted((PROJECT / folder).glob("*.[mp][dy]"))
    ),
]


@pytest.mark.parametrize("path", COPIED, ids=lambda path: path.name)
def test_nothing_that_people_copy_accepts_a_key_unseen(path: Path) -> None:
    assert [line for line in path.read_text().splitlines() if LAX.search(line)] == []


@pytest.mark.parametrize(
    "lax", ['ssh_strict_host_key_checking = "no"', "-o StrictHostKeyChecking=no", "accept-new"]
)
def test_an_example_that_does_would_be_found(lax: str) -> None:
    assert LAX.search(lax)
    assert not LAX.search('"ssh_strict_host_key_checking": "yes"')


def test_every_host_of_the_worked_example_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    hosts = Hosts("inventory/prod.py")._hosts
    assert len(hosts) == 4
    assert [host.data.get("ssh_strict_host_key_checking") for host in hosts] == ["yes"] * 4
