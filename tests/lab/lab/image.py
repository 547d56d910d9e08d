"""The hosts' base image: a small Debian with systemd, sshd and an operator's account, built once into the
cache.

It holds no key and no secret: what makes a host itself (keys, addresses, machine id) is laid over it at
start. On a machine without registries it is that machine's own system with a layer above it (carried.py).
"""

from __future__ import annotations

from pathlib import Path

from . import carried, prerequisites
from .keeping import kept
from .layout import OPERATOR, cache, recipe_key
from .shell import run

PACKAGES = (
    "systemd,systemd-sysv,dbus,openssh-server,iproute2,sudo,python3,python3-venv,rsync,ca-certificates,procps,libnuma1,"
    "libgomp1,e2fsprogs,psmisc"
)
FILES = {
    "etc/ssh/sshd_config.d/lab.conf": (
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "UseDNS no\nMaxStartups 100\nMaxSessions 100\n"
    ),
    f"etc/sudoers.d/{OPERATOR}": f"{OPERATOR} ALL=(ALL) NOPASSWD:ALL\n",
    "etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=persistent\nSyncIntervalSec=1s\nSystemMaxUse=64M\n",  # noqa: E501
    # The address itself is written for each host at start.
    "etc/systemd/network/10-lab.network.d/keep.conf": "[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
    "etc/resolv.conf": "",
}
MASKED = (
    "console-getty.service",
    "systemd-logind.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
)
ENABLED = ("ssh.service", "systemd-networkd.service")


# The releases of Debian that the product promises to run on -> the Python that each brings.
SUITES = {"bullseye": "3.9", "bookworm": "3.11", "trixie": "3.13"}


def prepare() -> None:
    """Have in the cache what can be kept there."""
    if not carried.packages():
        base()


def layers() -> tuple[Path, ...]:
    """The layers below what hosts write themselves, the uppermost first; the lab's working directory must
    be there.
    """
    return carried.layers(_configure) if carried.packages() else (base(),)


def base(suite: str = "") -> Path:
    """The base image's directory, built first when the cache has none of this recipe (about a minute).

    suite: a release of Debian; left out: the one of this machine
    """
    suite = suite or prerequisites.release()
    key = recipe_key(suite, PACKAGES, repr(sorted(FILES.items())), repr((MASKED, ENABLED, OPERATOR)))
    return kept(
        cache() / "images" / f"{suite}-{key}",
        f"building the hosts' base image ({suite})",
        lambda place: _build(place, suite),
    )


def _build(place: Path, suite: str) -> None:
    mirror = prerequisites.mirror(prerequisites.release())  # the same archive offers every release
    run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, place, mirror, timeout=1200)
    _configure(place)


def _configure(root: Path) -> None:
    for name, text in FILES.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(text)
    (root / "etc/sudoers.d" / OPERATOR).chmod(0o440)
    run("chroot", root, "useradd", "--create-home", "--shell", "/bin/bash", OPERATOR)
    for unit in MASKED:
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    run("chroot", root, "systemctl", "enable", *ENABLED)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()  # every host makes its own
    for cached in (root / "var/cache/apt/archives").glob("*.deb"):
        cached.unlink()
    (root / "etc/machine-id").write_text("")
    (root / "var/log/journal").mkdir(exist_ok=True)
