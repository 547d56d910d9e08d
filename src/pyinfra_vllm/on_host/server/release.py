"""A staged release as the host knows it, and the proof that it could be started now."""

from __future__ import annotations

import json
import os
import pwd
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from ..state import durable, manifest, permissions, secrets_file
from ..state.paths import API_KEY_MODULE, FRONT_FILES, SECRETS_FILE, STANDBY_MODULE, ServicePaths
from ..state.permissions import EXECUTE
from . import compile_cache

FILES = ("release.json", "vllm.service", "argv", "env")
# Those of some releases: the values of its secrets, what asks clients for the key where vLLM itself must not
# have it, and with standby what lets it sleep and the units of its front.
STANDBY_FILES = (STANDBY_MODULE, *FRONT_FILES)
OPTIONAL = (SECRETS_FILE, API_KEY_MODULE, *STANDBY_FILES)


class NotReady(Exception):
    """A release can't start now: a file, its checkpoint or runtime is missing, damaged or unreadable."""


@dataclass(frozen=True)
class Release:
    """`release.json`, with names for the parts that the host acts on."""

    document: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.document["id"])

    @property
    def model(self) -> str:
        return str(self.document["served_model_name"])

    @property
    def url(self) -> str:
        return str(self.document["url"])

    @property
    def port(self) -> int:
        return int(self.document["port"])

    @property
    def sockets(self) -> Path | None:
        """The folder of its server's Unix sockets; None where it listens on the port, and can't sleep."""
        folder = self.document.get("sockets")
        return Path(folder) if folder else None

    @property
    def user(self) -> str:
        return str(self.document["user"])

    @property
    def stop_limit_s(self) -> float:
        return float(self.document["stop_limit_s"])

    @property
    def argv(self) -> list[str]:
        return [str(word) for word in self.document["argv"]]

    def number(self, flag: str) -> int | None:
        """The whole number that the flag has on its command line; the last one, as argparse takes it."""
        words = [part for word in self.argv for part in word.split("=", 1)]
        found = [value for name, value in zip(words, words[1:]) if name == flag and value.isdecimal()]
        return int(found[-1]) if found else None

    @property
    def executable(self) -> Path:
        return Path(self.argv[0])

    @property
    def runtime(self) -> Path:
        """The directory that its vLLM is installed in."""
        return Path(self.document["runtime"].get("path") or self.executable.parents[1])

    @property
    def checkpoint(self) -> Path:
        return Path(self.document["checkpoint"]["directory"])

    @property
    def runtime_version(self) -> str:
        return str(self.document["runtime"]["version"])

    @property
    def gpus(self) -> list[int | str] | None:
        """Indexes or UUIDs; None: all of the host."""
        return self.document.get("gpus")

    @property
    def predicted_fit(self) -> dict[str, Any]:
        return dict(self.document.get("fit") or {})

    @property
    def predicted(self) -> dict[str, Any]:
        """The settings that vLLM should derive, by the catalog."""
        return dict(self.document.get("predicted") or {})

    @property
    def allow_code(self) -> str | None:
        """Why the checkpoint's own code may run; None where it may not."""
        return self.document.get("allow_code")

    @property
    def secrets(self) -> list[str]:
        """The names of its secrets; their values are in its secrets.env alone."""
        return list(self.document.get("secrets") or [])

    @property
    def key_is_asked_for(self) -> bool:
        """Whether our own module asks clients for the key, in vLLM's place."""
        return bool(self.document.get("key_is_asked_for"))

    @property
    def kernels(self) -> list[str] | None:
        return self.document.get("kernel")


def load(paths: ServicePaths, release_id: str) -> Release:
    try:
        document = durable.read_json(paths.release(release_id) / "release.json")
    except ValueError as error:
        raise NotReady(str(error)) from error
    if not isinstance(document, dict) or document.get("id") != release_id:
        raise NotReady(f"release {release_id} of {paths.name} is not staged below {paths.releases}")
    return Release(document)


def stage(paths: ServicePaths, payload: Path) -> str:
    """Lay a release down whole, or not at all, with a cache of its own. Returns the release id.

    payload: JSON with `id`, `user` and `files` (name -> text); removed once read, as it may hold secrets.
    """
    value = json.loads(payload.read_text(encoding="utf-8"))
    payload.unlink()
    release_id, files = value["id"], value["files"]
    if set(files) - set(OPTIONAL) != set(FILES):
        raise NotReady(f"{payload} has the files {sorted(files)}, not {sorted(FILES)}")
    paths.releases.mkdir(mode=0o755, parents=True, exist_ok=True)
    paths.evidence.mkdir(mode=0o700, exist_ok=True)
    paths.cache.mkdir(mode=0o755, exist_ok=True)
    compile_cache.forget_keys(paths.cache)
    target = paths.release(release_id)
    if not target.is_dir():
        partial = paths.releases / f".{release_id}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, text in files.items():
            durable.write_text(
                partial / name, text, mode=durable.PRIVATE if name == SECRETS_FILE else durable.PUBLIC
            )
        _private_cache(partial / "cache", value["user"])
        partial.rename(target)
        for directory in (paths.releases, paths.directory, paths.root):
            durable.sync_directory(directory)
    return str(release_id)


def _private_cache(cache: Path, user: str) -> None:
    cache.mkdir(mode=0o700)
    account = pwd.getpwnam(user)
    os.chown(cache, account.pw_uid, account.pw_gid)


def prove(paths: ServicePaths, release: Release) -> None:
    """Show that the release could be started now. Raises NotReady with the first thing that is wrong."""
    for part in PARTS.values():
        part(paths, release)


def _prove_files(paths: ServicePaths, release: Release) -> None:
    module = (API_KEY_MODULE,) if release.key_is_asked_for else ()
    for name in (*FILES, *module, *(STANDBY_FILES if release.sockets else ())):
        if not (paths.release(release.id) / name).is_file():
            raise NotReady(f"release {release.id} has lost its file {name}")


def _prove_checkpoint(paths: ServicePaths, release: Release) -> None:
    damage = manifest.quick_check(release.checkpoint)
    if damage:
        raise NotReady(f"the checkpoint of release {release.id} is damaged: {'; '.join(damage)}")


def _prove_secrets(paths: ServicePaths, release: Release) -> None:
    """Without its key a server would start all the same, and answer anybody."""
    path = paths.secrets(release.id)
    values = secrets_file.read(path)
    missing = [name for name in release.secrets if not values.get(name)]
    if missing:
        raise NotReady(
            f"release {release.id} has no value for {', '.join(missing)} in {path}: write it there again, a"
            " line"
            f' {missing[0]}="..." in a file of root\'s with mode 0600'
        )


def _prove_readable(paths: ServicePaths, release: Release) -> None:
    weights = [path for path in release.checkpoint.rglob("*") if path.is_file()]
    _readable(release, [release.executable, *weights])


def _readable(release: Release, files: list[Path]) -> None:
    account = _account(release)
    problems = (account.hindrance(path) for path in files)
    problem = next(filter(None, problems), "") or account.hindrance(release.executable, EXECUTE)
    if problem:
        raise NotReady(f"the user {release.user} can't use what release {release.id} needs: {problem}")


# What a start needs, in the order in which it is looked for; `doctor` tells of each.
PARTS: dict[str, Callable[[ServicePaths, Release], None]] = {
    "files": _prove_files,
    "secrets": _prove_secrets,
    "checkpoint": _prove_checkpoint,
    "readable": _prove_readable,
}


def out_of_reach(release: Release) -> None:
    """Raises NotReady where the service's user could change what the release is started from: a server that
    was taken over would decide what runs next, and root runs the runtime's Python for downloads.
    """
    account = _account(release)
    if account.uid == 0:
        return
    for top in (release.runtime, release.checkpoint):
        for path in (*top.parents, *(Path(folder) for folder, _, _ in os.walk(top))):
            if account.may(path, permissions.WRITE):
                raise NotReady(
                    f"the user {release.user} can write to {path}, and so change what release {release.id}"
                    f" is started from: `chown root {path}; chmod go-w {path}`"
                )


def _account(release: Release) -> permissions.Account:
    try:
        return permissions.Account(release.user)
    except KeyError:
        raise NotReady(f"the user {release.user} of release {release.id} does not exist") from None
