"""A machine without package registries: its lab is made of Debian packages that were carried there, and of
itself.

The programs that the lab needs are unpacked beside the system's. A host's system is this machine's own root
file system under a layer that adds to it (systemd, sshd, sudo) and replaces nothing, so no image has to be
carried.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from .keeping import kept
from .layout import OPERATOR, WORK, cache, recipe_key
from .shell import LabError, run, timed

DEBS = "PYINFRA_VLLM_LAB_DEBS"  # a directory of .deb files: `python -m lab carry` fills one
# The programs, and what they need of libraries that a small system may lack.
PROGRAMS = (
    "systemd,systemd-sysv,systemd-container,dbus,dbus-bin,dbus-daemon,dbus-system-bus-common,dbus-session-bus-common,"
    "openssh-server,openssh-sftp-server,openssh-client,sudo,iproute2,rsync,procps,psmisc,libcap2-bin,ucf,runit-helper"
)
LIBRARIES_TOO = (
    "libsystemd-shared,libdbus-1-3,libkmod2,libip4tc2,libapparmor1,libcryptsetup12,libfdisk1,libbpf1,libmnl0,libxtables12,"
    "libelf1,libargon2-1,libjson-c5,libdevmapper1.02.1,libwrap0,libproc2-0,libpopt0,libxxhash0,libnuma1,libseccomp2,"
    "libnsl2,libtirpc3,libbsd0,libmd0,libcap2,libdb5.3,libcom-err2,libkrb5-3,libgssapi-krb5-2,libk5crypto3,libkrb5support0,"
    "libkeyutils1,libedit2,libcbor0.8,libfido2-1,libaudit1,libexpat1,libacl1"
)
ROOM = "64g"  # for everything that hosts write; only what they do write is taken
LIBRARIES = "usr/lib/x86_64-linux-gnu"
# Made by the packages' scripts elsewhere; here packages are only unpacked.
ACCOUNTS = "u sshd - - /run/sshd\nu messagebus - -\ng systemd-journal -\nu systemd-network -\n"
# This machine's own PAM need not know Debian's; keys are all that the lab logs in with.
SSHD = "Include /etc/ssh/sshd_config.d/*.conf\nUsePAM no\nSubsystem sftp /usr/lib/openssh/sftp-server\n"


def packages() -> list[Path]:
    """The carried packages; [] where the lab builds its hosts from a mirror, as it does on Debian."""
    named = os.environ.get(DEBS)
    if not named:
        return []
    found = sorted(Path(named).glob("*.deb"))
    if not found:
        raise LabError(f"{DEBS}={named} holds no .deb files")
    return found


def fetch(place: Path) -> None:
    """Download them here, on Debian 12, to be carried."""
    place.mkdir(parents=True, exist_ok=True)
    run(
        "sh",
        "-c",
        'cd "$1" && shift && apt-get download "$@"',
        "sh",
        place,
        *f"{PROGRAMS},{LIBRARIES_TOO}".split(","),
    )


def programs() -> None:
    """Put the carried programs behind this machine's own in PATH, with the libraries that they need."""
    debs = packages()
    if not debs:
        return
    place = kept(
        cache() / "tools" / recipe_key(*(deb.name for deb in debs)),
        f"unpacking {len(debs)} packages",
        lambda place: _unpack(debs, place),
    )
    for variable, names in (
        ("PATH", ("usr/bin", "usr/sbin", "bin", "sbin")),
        ("LD_LIBRARY_PATH", (f"{LIBRARIES}/systemd", LIBRARIES, "lib/x86_64-linux-gnu")),
    ):
        known = os.environ.get(variable, "").split(":")
        added = [str(place / name) for name in names if str(place / name) not in known]
        os.environ[variable] = ":".join(word for word in (*known, *added) if word)
    _have_an_id()


def _have_an_id(file: Path = Path("/etc/machine-id")) -> None:
    """Give this machine the id that systemd would give it: addresses of the hosts' cables are computed from
    it.
    """
    if not file.exists() or not file.read_text().strip():
        file.write_text(f"{uuid.uuid4().hex}\n")


def _unpack(debs: list[Path], place: Path) -> None:
    place.mkdir(parents=True)
    for deb in debs:
        run("dpkg", "-x", deb, place)


def layers(configure: Callable[[Path], None]) -> tuple[Path, Path]:
    """The layer of hosts above this machine's own root, and that root.

    In memory, as what the hosts write: an overlay's upper layer can't lie on the file system that is below
    it.
    """
    run("mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=711", "pyinfra-vllm-lab", WORK)
    upper, work, root = (WORK / "base" / name for name in ("upper", "work", "root"))
    for directory in (upper, work, root):
        directory.mkdir(parents=True)
    with timed("laying the hosts' system over this machine's own"):
        run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", root)
        for deb in packages():
            _add(deb, root)
        _settle(root)
        configure(root)
        # Without PAM, sshd takes the `!` of a new account for a lock.
        run("chroot", root, "usermod", "--password", "*", OPERATOR)
        run("umount", root)
    return upper, Path("/")


def _add(deb: Path, root: Path) -> None:
    keep = "--skip-old-files --keep-directory-symlink"
    run("sh", "-c", f'dpkg-deb --fsys-tarfile "$1" | tar -x -p {keep} -C "$2"', "sh", deb, root)


def _settle(root: Path) -> None:
    """Do what the packages' scripts would have done, and hide what of this machine's is not for hosts."""
    for name, text in {"etc/sysusers.d/lab.conf": ACCOUNTS, "etc/ssh/sshd_config": SSHD}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    shutil.rmtree(root / "etc/ssh/sshd_config.d", ignore_errors=True)
    (root / "run/sshd").mkdir(parents=True, exist_ok=True)
    run("chroot", root, "systemd-sysusers")
