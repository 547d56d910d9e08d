"""The hosts' mirror is the one that this machine's apt uses, in either form of its sources."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import prerequisites
from lab.shell import LabError

ONE_LINE = """\
# deb http://old.example/debian bookworm main
deb-src http://sources.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://other.example/tool bookworm stable
deb [signed-by=/k.gpg] http://mirror.example/debian bookworm contrib main
deb http://security.example/debian-security bookworm-security main
"""
DEB822 = """\
Types: deb
URIs: http://security.example/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

# the one that counts
Types: deb deb-src
# URIs: http://commented.example/debian
URIs: http://mirror.example/debian http://second.example/debian
Suites: bookworm bookworm-updates
Components: main non-free
"""


@pytest.mark.parametrize(("name", "text"), [("a.list", ONE_LINE), ("b.sources", DEB822)])
def test_the_mirror_of_the_suite_is_found(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / name).write_text(text)
    assert prerequisites.mirror("bookworm", tmp_path) == "http://mirror.example/debian"


def test_without_a_mirror_the_message_names_the_suite(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(ONE_LINE)
    with pytest.raises(LabError, match=r"no source in .* offers trixie"):
        prerequisites.mirror("trixie", tmp_path)
