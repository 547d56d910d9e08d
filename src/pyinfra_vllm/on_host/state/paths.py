"""Where everything lives on a host. Nothing here touches the disk but the functions that say so."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ROOT = Path("/srv/pyinfra-vllm")
UNITS = Path("/etc/systemd/system")
TRANSIENT_UNITS = Path("/run/systemd/system")
SECRETS_FILE = "secrets.env"
API_KEY_MODULE = "pyinfra_vllm_api_key.py"  # in a release's folder, which is then on vLLM's PYTHONPATH
STANDBY_MODULE = "pyinfra_vllm_standby.py"  # in the same folder
PEER_USER = "vllm-peer"  # whom the child that shares a checkpoint runs as
# Of a service with standby: the units of its front, the name of each in its release's folder, and the sockets
# of each server.
FRONT, FRONT_FILES = "front", ("front.socket", "front.service")
API_SOCKET, CONTROL_SOCKET = "api.sock", "control.sock"
RUN = Path("/run")
# Folders beside those of the services: no service may have such a name.
SHARED = ("bin", "checkpoints", "runtimes")


_SERVER = re.compile(r"vllm-(.+)\.([0-9a-f]{12})\.service")


def server_unit(service: str, release_id: str) -> str:
    """The unit of a server with standby: two releases of one service may run at once."""
    return f"vllm-{service}.{release_id}.service"


def sockets_folder(service: str, release_id: str) -> Path:
    """The folder of such a server's sockets, which lasts as long as it runs."""
    return RUN / f"vllm-{service}" / release_id


def awake(service: str) -> Path:
    """The symlink by which the front finds the server that is awake."""
    return RUN / f"vllm-{service}" / "awake"


def leads_to(awake: Path) -> Path | None:
    """The server's socket to which the front's symlink leads; None where it is lost. Looks at the disk."""
    try:
        return Path(os.path.normpath(awake.parent / awake.readlink()))
    except OSError:
        return None


@dataclass(frozen=True)
class ServicePaths:
    """The files of one service below the root, and its unit as systemd finds it."""

    root: Path
    name: str
    units: Path = UNITS

    @property
    def directory(self) -> Path:
        return self.root / self.name

    @property
    def releases(self) -> Path:
        return self.directory / "releases"

    @property
    def current(self) -> Path:
        return self.directory / "current"

    @property
    def previous(self) -> Path:
        return self.directory / "previous"

    @property
    def journal(self) -> Path:
        return self.directory / "journal.jsonl"

    @property
    def evidence(self) -> Path:
        return self.directory / "evidence"

    @property
    def rejected(self) -> Path:
        return self.directory / "rejected.json"

    @property
    def noise(self) -> Path:
        return self.directory / "noise.json"

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

    @property
    def cache(self) -> Path:
        """Where each release sees its own cache; directly in it are those of an earlier version."""
        return self.directory / "cache"

    @property
    def hooks(self) -> Path:
        return self.directory / "hooks.json"

    @property
    def unit(self) -> str:
        return f"vllm-{self.name}.service"

    @property
    def recovery_unit(self) -> str:
        """Finishes what a transaction left, however often that has to be tried (operations/program.py)."""
        return f"pyinfra-vllm-recover@{self.name}.service"

    @property
    def unit_link(self) -> Path:
        return self.units / self.unit

    @property
    def wants_link(self) -> Path:
        return self.units / "multi-user.target.wants" / self.unit

    def has_front(self, release_id: str) -> bool:
        """Whether clients ask the service's front, which leads to the socket of this release's server."""
        return (self.release(release_id) / FRONT_FILES[0]).is_file()

    def front_lost(self, release_id: str | None) -> bool:
        """Whether the front does not lead to the server of this release, which has one. Looks at the disk."""
        if release_id is None or not self.has_front(release_id):
            return False
        return leads_to(awake(self.name)) != self.api_socket(release_id)

    def api_socket(self, release_id: str) -> Path:
        return self.sockets_folder(release_id) / API_SOCKET

    def server_unit(self, release_id: str) -> str:
        """The unit of a server with standby, of which `unit` is an alias while the release is current."""
        return server_unit(self.name, release_id)

    def sockets_folder(self, release_id: str) -> Path:
        return sockets_folder(self.name, release_id)

    def asleep_settings(self, release_id: str) -> Path:
        """The drop-in of a server that sleeps on after the commit; gone after a boot."""
        return RUN / "systemd" / "system" / f"{self.server_unit(release_id)}.d" / "asleep.conf"

    def server_units(self) -> dict[str, str]:
        """The unit of each server with standby that systemd may know, by its release."""
        found = (re.fullmatch(_SERVER, link.name) for link in self.units.glob(f"vllm-{self.name}.*.service"))
        return {named[2]: named[0] for named in found if named and named[1] == self.name}

    def is_server(self, unit: Path) -> bool:
        return unit.parent == self.units and unit.name in self.server_units().values()

    def front_unit(self, file: str) -> str:
        """The name by which systemd knows a unit of the front."""
        return f"vllm-{self.name}-{file}"

    @property
    def front_links(self) -> dict[Path, Path]:
        """How systemd finds the front, and that it is to listen at boot: each link and where it leads."""
        links = {self.units / self.front_unit(file): self.current / file for file in FRONT_FILES}
        socket = self.front_unit(FRONT_FILES[0])
        return {**links, self.units / "sockets.target.wants" / socket: self.units / socket}

    def release(self, release_id: str) -> Path:
        return self.releases / release_id

    def own_cache(self, release_id: str) -> Path:
        return self.release(release_id) / "cache"

    def noted_cache(self, release_id: str) -> Path:
        """The list of the files in the release's cache at its first tokens (carried_cache.py)."""
        return self.release(release_id) / "cache.json"

    def carried_cache(self, release_id: str) -> Path:
        """A compile cache that came from another host and waits for the switch (staging/compiled.py)."""
        return self.release(release_id) / "carried"

    def rehearsal(self, release_id: str) -> Path:
        """The answer of the release's own vLLM to the rehearsal (rehearsal.py)."""
        return self.release(release_id) / "rehearsal.json"

    @property
    def caches(self) -> list[Path]:
        """All that are there, of whatever release and version."""
        return [self.cache, *sorted(self.releases.glob("[!.]*/cache"))]

    def secrets(self, release_id: str) -> Path:
        """The values that a release was declared with; there is no such file where it has none."""
        return self.release(release_id) / SECRETS_FILE

    def linked(self, link: Path) -> str | None:
        """The release id that `current` or `previous` points to; None where there is no link."""
        try:
            return link.readlink().name
        except FileNotFoundError:
            return None


def services(root: Path, units: Path = UNITS) -> list[ServicePaths]:
    """Every service that has releases below the root."""
    if not root.is_dir():
        return []
    return [
        ServicePaths(root, entry.name, units)
        for entry in sorted(root.iterdir())
        if (entry / "releases").is_dir()
    ]
