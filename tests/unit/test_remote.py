"""Files that the control machine lays down on a host, by the real shell: on the disk before it counts, and
gone once it was read.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from pyinfra_vllm.errors import HostError
from pyinfra_vllm.on_host.switch.order import Order
from pyinfra_vllm.operations.util import switching
from pyinfra_vllm.operations.util.remote import Remote

# Notes what is synced, and what the file's text is at that moment; fails where it is told to.
SYNC = """#!/bin/sh
echo "$1: $(cat {folder}/file 2>/dev/null)" >> {folder}/synced
test ! -e {folder}/broken
"""


class Here(Remote):
    """This machine instead of a host."""

    def __init__(self, programs: Path) -> None:
        self.environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
        self.commands: list[tuple[str, ...]] = []

    def run(self, *words: str, stdin: str | Sequence[str] | None = None, timeout_s: int | None = None) -> str:
        self.commands.append(words)
        text = stdin if isinstance(stdin, str | None) else "".join(f"{line}\n" for line in stdin)
        done = subprocess.run(words, input=text, capture_output=True, text=True, env=self.environment)
        if done.returncode:
            raise HostError(f"status {done.returncode}: {done.stderr.strip()}")
        return done.stdout


@pytest.fixture
def here(tmp_path: Path) -> Here:
    programs = tmp_path / "programs"
    programs.mkdir()
    return Here(programs)


def program(here: Path, name: str, text: str) -> None:
    (here / "programs" / name).write_text(text)
    (here / "programs" / name).chmod(0o755)


def test_a_file_is_on_the_disk_before_it_has_its_name_and_then_its_name_is(
    tmp_path: Path, here: Here
) -> None:
    program(tmp_path, "sync", SYNC.format(folder=tmp_path))
    here.write(f"{tmp_path}/file", "old", "644")
    here.write(f"{tmp_path}/file", "new")
    assert (tmp_path / "synced").read_text().splitlines() == [
        f"{tmp_path}/file.partial: ", f"{tmp_path}: old", f"{tmp_path}/file.partial: old", f"{tmp_path}: new",
    ]  # fmt: skip
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_a_disk_that_does_not_take_it_is_an_error_and_the_old_text_stays(tmp_path: Path, here: Here) -> None:
    program(tmp_path, "sync", SYNC.format(folder=tmp_path))
    here.write(f"{tmp_path}/file", "old")
    (tmp_path / "broken").touch()
    with pytest.raises(HostError):
        here.write(f"{tmp_path}/file", "new")
    assert (tmp_path / "file").read_text() == "old"


def test_the_real_sync_takes_a_file_and_a_folder(tmp_path: Path, here: Here) -> None:
    here.write(f"{tmp_path}/file", "text")
    assert (tmp_path / "file").read_text() == "text"


ORDER = Order(service="chat", release="a" * 12, operator="ann")


def test_an_order_goes_with_the_unit_that_carries_it_out(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switching, "RUN_DIRECTORY", str(tmp_path))
    program(tmp_path, "systemd-run", "#!/bin/sh\nexit 0\n")
    switching.launch(here, "/srv/x", ORDER)
    (order,) = tmp_path.glob("*.json")
    started = here.commands[-1]
    assert started[-2:] == ("switch", str(order))
    stops = [word.partition("ExecStopPost=")[2] for word in started if "ExecStopPost=" in word]
    assert [shlex.split(stop)[-1] for stop in stops] == [str(order)]
    assert "--property=OnFailure=pyinfra-vllm-recover@chat.service" in started
    subprocess.run(shlex.split(stops[0].lstrip("-")), check=True)
    assert not order.exists()


def test_an_order_that_systemd_does_not_take_is_not_left_behind(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switching, "RUN_DIRECTORY", str(tmp_path))
    program(tmp_path, "systemd-run", "#!/bin/sh\necho 'the unit runs already' >&2; exit 3\n")
    with pytest.raises(HostError, match="status 3: the unit runs already"):
        switching.launch(here, "/srv/x", ORDER)
    assert list(tmp_path.glob("*.json")) == []
