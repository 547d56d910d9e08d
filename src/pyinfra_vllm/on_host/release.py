"""A staged release as the host knows it, and the proof that it could be started now."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import compile_cache, durable, manifest, secrets_file
from .paths import API_KEY_MODULE, SECRETS_FILE, ServicePaths

PROOF_TIMEOUT_S = 300
FILES = ("release.json", "vllm.service", "argv", "env")
# Those of some releases: the values of its secrets, and what asks clients for the key where vLLM itself must not have it.
OPTIONAL = (SECRETS_FILE, API_KEY_MODULE)

# Runs as the service's user: opening is the only test of a permission that can't be wrong.
_OPEN_ALL = """
import json, os, sys
for path in json.load(sys.stdin):
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")
"""


class NotReady(Exception):
    """A release can't be started now: a file, its checkpoint or its runtime is missing, damaged or unreadable."""


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
    def user(self) -> str:
        return str(self.document["user"])

    @property
    def stop_limit_s(self) -> float:
        return float(self.document["stop_limit_s"])

    @property
    def argv(self) -> list[str]:
        return [str(word) for word in self.document["argv"]]

    @property
    def executable(self) -> Path:
        return Path(self.argv[0])

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
    """Lay a release down whole, or not at all, and give the service its own cache. Returns the release id.

    payload: JSON with `id`, `user` and `files` (name -> text); removed once it was read, as it may hold secrets.
    """
    value = json.loads(payload.read_text(encoding="utf-8"))
    payload.unlink()
    release_id, files = value["id"], value["files"]
    if set(files) - set(OPTIONAL) != set(FILES):
        raise NotReady(f"{payload} has the files {sorted(files)}, not {sorted(FILES)}")
    for directory in (paths.releases, paths.evidence):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    _private_cache(paths, value["user"])
    compile_cache.forget_keys(paths.cache)
    target = paths.release(release_id)
    if not target.is_dir():
        partial = paths.releases / f".{release_id}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, text in files.items():
            durable.write_text(partial / name, text, mode=0o600 if name == SECRETS_FILE else 0o644)
        partial.rename(target)
        for directory in (paths.releases, paths.directory, paths.root):
            durable.sync_directory(directory)
    return str(release_id)


def _private_cache(paths: ServicePaths, user: str) -> None:
    paths.cache.mkdir(mode=0o700, exist_ok=True)
    account = pwd.getpwnam(user)
    os.chown(paths.cache, account.pw_uid, account.pw_gid)


def prove(paths: ServicePaths, release: Release) -> None:
    """Show that the release could be started now. Raises NotReady with the first thing that is wrong."""
    for name in (*FILES, API_KEY_MODULE) if release.key_is_asked_for else FILES:
        if not (paths.release(release.id) / name).is_file():
            raise NotReady(f"release {release.id} has lost its file {name}")
    _prove_secrets(paths.secrets(release.id), release)
    damage = manifest.quick_check(release.checkpoint)
    if damage:
        raise NotReady(f"the checkpoint of release {release.id} is damaged: {'; '.join(damage)}")
    weights = [str(path) for path in release.checkpoint.rglob("*") if path.is_file()]
    _readable(release, [str(release.executable), *weights])


def _prove_secrets(path: Path, release: Release) -> None:
    """Without its key a server would start all the same, and answer anybody."""
    values = secrets_file.read(path)
    missing = [name for name in release.secrets if not values.get(name)]
    if missing:
        raise NotReady(
            f"release {release.id} has no value for {', '.join(missing)} in {path}: write it there again, a line"
            f' {missing[0]}="..." in a file of root\'s with mode 0600'
        )


def _readable(release: Release, files: list[str]) -> None:
    try:
        account = pwd.getpwnam(release.user)
    except KeyError:
        raise NotReady(f"the user {release.user} of release {release.id} does not exist") from None
    done = subprocess.run(
        [sys.executable, "-I", "-c", _OPEN_ALL],
        input=json.dumps(files),
        capture_output=True,
        text=True,
        cwd="/",
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[],
        timeout=PROOF_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise NotReady(
            f"the user {release.user} can't read what release {release.id} needs: {done.stderr.strip()}"
        )
    if not os.access(release.executable, os.X_OK):
        raise NotReady(f"the runtime of release {release.id} is not executable: {release.executable}")
