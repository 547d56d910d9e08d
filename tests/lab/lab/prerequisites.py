"""The prerequisites of the lab on this machine: Debian, root, and a few packages, installed when
missing.

A machine that packages were carried to (carried.py) need not be Debian, and nothing is installed there.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from . import carried
from .shell import LabError, run, timed

# program looked for -> the Debian package that brings it
PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "debootstrap": "debootstrap",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "ip": "iproute2",
    "tc": "iproute2",
    "mkfs.ext4": "e2fsprogs",
    "mount": "mount",
    "setsid": "util-linux",
}
UNCARRIED = ("debootstrap", "tc", "mkfs.ext4")  # no image is built there, no link slowed down, no disk filled
# what only the tests need: the report is opened in a real browser
BROWSER = {"chromium": "chromium"}
# file looked for -> package: libraries and modules that no program stands for
FILES = {
    "/usr/lib/*/libnuma.so.1": "libnuma1",
    "/usr/lib/python3*/ensurepip/__init__.py": "python3-venv",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
    "/etc/ssl/certs/ca-certificates.crt": "ca-certificates",
}


def ensure(browser: bool = False) -> None:
    """Install what is missing (Debian, as root); anywhere else say exactly what is missing and stop."""
    if os.geteuid() != 0:
        raise LabError(
            "the lab boots containers and makes network bridges: run it as root (make test-fast needs no"
            " root)"
        )
    if carried.packages():
        carried.programs()
        return _all_carried()
    programs = {**PROGRAMS, **(BROWSER if browser else {})}
    missing = missing_packages(programs)
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise LabError(
            f"the lab needs these Debian packages, and this machine has no apt-get: {' '.join(missing)}"
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with timed(f"apt-get install {' '.join(missing)}"):
        run("apt-get", "update", "-q", env=environment)
        run("apt-get", "install", "-y", "-q", "--no-install-recommends", *missing, env=environment)
    still = missing_packages(programs)
    if still:
        raise LabError(f"apt-get installed them, yet these are still not found: {' '.join(still)}")


def _all_carried() -> None:
    missing = sorted({name for name in PROGRAMS if name not in UNCARRIED and not shutil.which(name)})
    if missing:
        raise LabError(
            f"this machine lacks {', '.join(missing)}, and no package in {carried.DEBS} brings them: carry "
            f"{', '.join(sorted({PROGRAMS[name] for name in missing}))} too"
        )


def missing_packages(programs: dict[str, str]) -> list[str]:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    packages = {package for program, package in programs.items() if not shutil.which(program, path=path)}
    packages |= {package for pattern, package in FILES.items() if not any(Path("/").glob(pattern[1:]))}
    return sorted(packages)


def release() -> str:
    """This machine's Debian release, as in `bookworm`; the hosts get the same, so that one Python serves
    both.
    """
    facts = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    if facts.get("ID") != "debian" or not facts.get("VERSION_CODENAME"):
        raise LabError(
            f"the lab's hosts are built on Debian; this machine is {facts.get('PRETTY_NAME', 'unknown')}"
        )
    return str(facts["VERSION_CODENAME"])


def mirror(suite: str, etc: Path = Path("/etc/apt")) -> str:
    """The mirror that this machine's own apt uses for `suite`."""
    for file in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if file.suffix == ".list" and file.is_file():
            found = _one_line(file.read_text(), suite)
        elif file.suffix == ".sources":
            found = _deb822(file.read_text(), suite)
        else:
            continue
        if found:
            return found
    raise LabError(
        f"no source in {etc} offers {suite}: debootstrap has no mirror to fetch the hosts' system from"
    )


def _one_line(text: str, suite: str) -> str | None:
    for line in text.splitlines():
        kind, *words = re.sub(r"\[[^]]*]", "", line).split() or [""]
        if kind == "deb" and len(words) > 2 and words[1] == suite and "main" in words[2:]:
            return words[0]
    return None


def _deb822(text: str, suite: str) -> str | None:
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if not line.startswith("#")]
        fields = dict(re.findall(r"^(\S+):[ \t]*(.*)$", "\n".join(lines), re.MULTILINE))
        offered = "main" in fields.get("Components", "").split() and suite in fields.get("Suites", "").split()
        if offered and "deb" in fields.get("Types", "").split() and fields.get("Enabled", "yes") != "no":
            return str(fields["URIs"].split()[0])
    return None
