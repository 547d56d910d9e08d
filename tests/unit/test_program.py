"""The requirements of a host, checked before anything is put on it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyinfra_vllm.on_host.inspect import host as inspect_host
from pyinfra_vllm.operations import program
from pyinfra_vllm.rollout.progress import Progress


def found(systemd: int) -> inspect_host.Installation:
    return inspect_host.Installation([3, 9, 2], "x86_64", systemd, None, None, None, machine="", users={})


def test_a_token_needs_a_systemd_that_hands_it_over_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    problem = program._problem(found(245))
    assert problem is not None
    assert problem.startswith(
        "its systemd is 245; 247 or newer is needed to hand the Hub's token to a download unseen."
    )
    assert "Upgrade the host, or leave HF_TOKEN unset" in problem


@pytest.mark.parametrize(("systemd", "token"), [(245, False), (247, True), (257, True)])
def test_otherwise_an_older_one_will_do(systemd: int, token: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret" if token else None)
    assert program._problem(found(systemd)) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="folders of the tests' own user are no others'")
def test_a_folder_that_others_may_write_to_is_found_and_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o022:
            assert inspect_host.loose(tmp_path / "x") == str(folder)  # such as /tmp itself
    assert inspect_host.loose(Path("/usr/bin")) is None
    assert program._loose(None) is None
    assert "others than root may write to /x" in str(program._loose("/x"))


def test_installed_units_are_recognised_on_the_host(tmp_path: Path) -> None:
    texts = program.units("/srv/pyinfra-vllm")
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert inspect_host.recovery_units(tmp_path) is None, "none of them is enabled"
    for link in inspect_host.ENABLED:
        (tmp_path / link).parent.mkdir()
        (tmp_path / link).symlink_to(tmp_path / Path(link).name)
    assert inspect_host.recovery_units(tmp_path) == "".join(texts.values())
    assert set(program.ENABLED) == {Path(link).name for link in inspect_host.ENABLED}


def test_one_machine_under_two_names_is_noticed() -> None:
    known = Progress()
    assert known.twin("gpu-01", "machine boot pid:[1]") == ""
    assert known.twin("gpu-02", "machine boot pid:[2]") == "", "a clone has the same machine id"
    assert known.twin("alias", "machine boot pid:[1]") == "gpu-01"
    assert known.twin("gpu-01", "machine boot pid:[1]") == ""
    assert known.twin("mute", "") == ""
