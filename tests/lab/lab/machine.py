"""One host of the lab: a booted Debian with its own systemd, sshd, disk and cable."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from . import cgroups, leftovers, network
from . import disk as disks
from .disk import Disk
from .layout import MACHINE_PREFIX, OPERATOR, WORK, Network
from .shell import LabError, last_lines, run, say


@dataclass
class Host:
    """A host that can be started, reached over SSH, cut off, and lose its power.

    Its disk outlives its power.
    """

    name: str
    address: str
    layers: tuple[Path, ...]  # of the image, the uppermost first
    key: Path
    known_hosts: Path
    binds: Mapping[Path, str] = field(default_factory=dict)  # directory on this machine -> path, read-only
    disks: tuple[Disk, ...] = ()
    devices: tuple[Path, ...] = ()  # device nodes of this machine that the host has too
    _supervisor: subprocess.Popen[bytes] | None = None

    @property
    def place(self) -> Path:
        return WORK / network.checked(self.name)

    @property
    def root(self) -> Path:
        """The host's file system as this machine sees it."""
        return self.place / "root"

    @property
    def console(self) -> Path:
        return self.place / "console.log"

    def launch(self) -> None:
        """Switch the power on; `wait_ready` says when SSH answers."""
        if self.running:
            raise LabError(f"{self.name} is already running")
        self._lay_over_base()
        network.unplug(self.name)
        with self.console.open("ab") as console:
            self._supervisor = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        self._until(lambda: network.outer(self.name) in network.interfaces(), 20, "has no cable")
        network.plug_in(self.name)

    def start(self, timeout: float = 60) -> Host:
        self.launch()
        return self.wait_ready(timeout)

    def wait_ready(self, timeout: float = 60) -> Host:
        """Return when the host answers over SSH."""
        begun = time.monotonic()
        self._until(self._greets, timeout, "does not answer over SSH")
        say(f"{self.name} ({self.address}) answers {time.monotonic() - begun:.1f} s after its start")
        return self

    @property
    def running(self) -> bool:
        return self._supervisor is not None and self._supervisor.poll() is None

    def stop(self, timeout: float = 120) -> None:
        """Shut down in good order, as `poweroff` does."""
        if self._supervisor is None or not self.running:
            return
        os.kill(self._supervisor.pid, signal.SIGTERM)  # nspawn passes it on as an orderly power-off
        try:
            self._supervisor.wait(timeout)
        except subprocess.TimeoutExpired:
            say(f"{self.name} did not shut down within {timeout:.0f} s: taking its power away")
        self.power_cut()

    def power_cut(self) -> None:
        """Everything in the host dies at once; `start` boots it again from the same disk."""
        leftovers.kill([pid for pid in leftovers.processes(self.name) if pid != self._pid])
        if self._supervisor is not None:
            self._supervisor.kill()
            self._supervisor.wait(30)
        network.unplug(self.name)
        cgroups.remove(self.name)
        self._supervisor = None

    def remove(self) -> None:
        """Power off and forget everything the host wrote."""
        self.power_cut()
        for path in reversed(leftovers.mounts(self.place)):
            leftovers.unmount(path)
        if self.place.exists():
            run("rm", "-rf", "--one-file-system", self.place)

    def cut_link(self) -> None:
        network.cut(self.name)

    def restore_link(self) -> None:
        network.restore(self.name)

    def limit_link(self, rate_mbit: float | None) -> None:
        """Slow down what the host receives; None takes the limit away."""
        network.limit(self.name, rate_mbit)

    def set_read_only(self, disk: Disk, read_only: bool = True) -> None:
        disks.set_read_only(disk.mount(self.place), read_only)

    def ssh(
        self,
        command: str,
        *,
        user: str = "root",
        check: bool = True,
        timeout: float = 120,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command on the host; `user="ops"` is the operator's account, which has sudo."""
        return run(*self.ssh_argv(user), command, check=check, timeout=timeout, stdin=stdin)

    def ssh_argv(self, user: str = "root") -> list[str]:
        options = {
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "ConnectTimeout": "5",
            "ServerAliveInterval": "5",
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return ["ssh", "-F", "none", "-i", str(self.key), *words, f"{user}@{self.address}"]

    def journal(self, unit: str, lines: int = 50) -> str:
        return self.ssh(f"journalctl --no-pager -o cat -n {lines} -u {shlex.quote(unit)}").stdout

    def leader(self) -> int | None:
        """The host's first process as this machine numbers it; None while its power is off."""
        if self._supervisor is None:
            return None
        pid = self._supervisor.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return None
        return int(children[0]) if children else None

    @property
    def _pid(self) -> int | None:
        return self._supervisor.pid if self._supervisor else None

    def _until(self, reached: Callable[[], bool], timeout: float, problem: str) -> None:
        deadline = time.monotonic() + timeout
        while not reached():
            if not self.running:
                problem = "stopped while booting"
            elif time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise LabError(f"{self.name} {problem}:\n{last_lines(self.console.read_text(errors='replace'))}")

    def _greets(self) -> bool:
        with suppress(OSError), socket.create_connection((self.address, 22), timeout=1) as connection:
            connection.settimeout(2)
            return connection.recv(4) == b"SSH-"
        return False

    def _command(self) -> list[str]:
        words = ["systemd-nspawn", "--quiet", "--boot", "--register=no", f"--directory={self.root}"]
        if not cgroups.systemd_here():  # nothing outside that could make a scope for it
            words = [*cgroups.entering(self.name), *words, "--keep-unit"]
        words += [f"--machine={MACHINE_PREFIX}{self.name}", f"--hostname={self.name}"]
        words += [
            f"--network-veth-extra={network.outer(self.name)}:{network.inner(self.name)}",
            "--link-journal=no",
        ]
        words += ["--resolv-conf=off", "--timezone=off", "--settings=no"]
        words += [f"--bind-ro={source}:{path}" for source, path in self.binds.items()]
        words += self._with_devices() if self.devices else []
        return words + [f"--bind={disk.mount(self.place)}:{disk.path}" for disk in self.disks]

    def _with_devices(self) -> list[str]:
        """These devices and no further ones; systemd in there may attach the programs by which it guards
        devices.
        """
        rights = ["--capability=all", "--drop-capability=CAP_MKNOD", "--system-call-filter=bpf @known"]
        return [*rights, *(f"--bind={device}" for device in self.devices)]

    def _lay_over_base(self) -> None:
        """The base image read-only below, what this host writes above; written the first time only."""
        upper, work = self.place / "upper", self.place / "work"
        if not upper.exists():
            for directory in (upper, work, self.root):
                directory.mkdir(parents=True)
            self._make_it_itself(upper)
        if not self.root.is_mount():
            lower = ":".join(map(str, self.layers))
            layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
            run("mount", "-t", "overlay", "overlay", "-o", layers, self.root)

    def _make_it_itself(self, upper: Path) -> None:
        own = {
            "etc/hostname": f"{self.name}\n",
            "etc/hosts": f"127.0.0.1 localhost\n{self.address} {self.name}\n",
            "etc/machine-id": f"{uuid.uuid4().hex}\n",
            "etc/systemd/network/10-lab.network": (
                f"[Match]\nName={network.inner(self.name)}\n[Network]\nAddress={self.address}/24\n"
                f"LinkLocalAddressing=no\nIPv6AcceptRA=no\n[Route]\nGateway={Network().gateway}\n"
            ),
        }
        for name, text in own.items():
            _write(upper / name, text)
        authorized = self.key.with_suffix(".pub").read_text()
        _write(upper / "root/.ssh/authorized_keys", authorized, private=True)
        account = _account(self.layers[0], OPERATOR)
        _write(upper / f"home/{OPERATOR}/.ssh/authorized_keys", authorized, private=True)
        for path in (f"home/{OPERATOR}", f"home/{OPERATOR}/.ssh", f"home/{OPERATOR}/.ssh/authorized_keys"):
            os.chown(upper / path, *account)
        (upper / "root").chmod(0o700)
        host_key = upper / "etc/ssh/ssh_host_ed25519_key"
        host_key.parent.mkdir(parents=True, exist_ok=True)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", host_key)
        kind, public, *_ = host_key.with_suffix(".pub").read_text().split()
        with self.known_hosts.open("a") as known:
            known.write(f"{self.address},{self.name} {kind} {public}\n")


def _write(path: Path, text: str, private: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if private:
        path.parent.chmod(0o700)
        path.chmod(0o600)


def _account(root: Path, name: str) -> tuple[int, int]:
    for line in (root / "etc/passwd").read_text().splitlines():
        fields = line.split(":")
        if fields[0] == name:
            return int(fields[2]), int(fields[3])
    raise LabError(f"the base image has no account {name}")
