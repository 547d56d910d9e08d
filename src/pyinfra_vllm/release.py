"""The release: all inputs of one vLLM service, named by a hash of its content.

Pure: it renders text and computes a name. It never looks at a host.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyinfra_vllm import front, shipped
from pyinfra_vllm.answers import StagedRelease
from pyinfra_vllm.config.models import API_KEY
from pyinfra_vllm.in_runtime import api_key, standby
from pyinfra_vllm.on_host.state.paths import (
    API_KEY_MODULE,
    API_SOCKET,
    CONTROL_SOCKET,
    FRONT,
    SECRETS_FILE,
    STANDBY_MODULE,
    awake,
    server_unit,
    sockets_folder,
)
from pyinfra_vllm.rendering import environment_file, rendered

TEMPLATE = "templates/vllm.service.j2"
ID_LENGTH = 12
# The id is part of the unit that it names: it is hashed with this in its place.
_UNNAMED = "0" * ID_LENGTH
# Anyone on a host can read an id and all else that it is a hash of, so guessing a secret by it must cost:
# OWASP's parameters for scrypt in 16 MiB, 0.2 s a guess.
_SCRYPT = {"n": 2**14, "r": 8, "p": 5, "dklen": 32}
# Time that systemd waits after SIGTERM beyond vLLM's own drain (`TimeoutStopSec >= shutdown-timeout + 30`).
STOP_MARGIN_S = 30

Value = str | bool | None
Pair = tuple[Value, Value]  # before and after; None: there is none

ASK_FOR_KEY = ("--middleware", f"{API_KEY_MODULE.removesuffix('.py')}.{api_key.ApiKey.__name__}")
OBEY_ROOT = ("--middleware", f"{STANDBY_MODULE.removesuffix('.py')}.{standby.Standby.__name__}")
# Begins the path at which a server with `stable_paths` sees its checkpoint. systemd makes the mount point; a
# reboot removes it. It has no folder of its own: systemd 247 would make that by the unit's UMask=, and the
# server could not enter it.
STABLE_PATH = "/run/pyinfra-vllm-checkpoint-"
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


@dataclass(frozen=True)
class Release:
    """One immutable release. Sizes in bytes, times in seconds.

    argv: the whole command line, the executable first
    environment: variables of the unit, without secrets
    secrets: variables and their values; the id covers them, and nothing but their own file ever holds them
    checkpoint: {"repo", "revision", "commit", "directory"}
    stable_path: where the server sees the checkpoint, the same while only the weights change; or None
    runtime: {"version", "path"}
    gpus: indexes or UUIDs, as declared; None: all
    kernel: kernels that the gate may find in the log; None where it must not look
    standby: its server can sleep while another one serves (docs/standby.md): it listens on a Unix socket in a
        folder of its own, behind the service's front
    key_is_asked_for: by in_runtime/api_key.py, as this vLLM would write the key to the disk
    allow_code: why the checkpoint's own code may run; None where it may not
    """

    service: str
    root: str
    user: str
    bind: str
    port: int
    served_model_name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    checkpoint: Mapping[str, str]
    runtime: Mapping[str, str]
    stop_limit_s: int
    gpus: tuple[int | str, ...] | None = None
    gpu_count: int = 0
    kernel: Sequence[str] | None = None
    fit: Mapping[str, Any] = field(default_factory=dict)
    predicted: Mapping[str, Any] = field(default_factory=dict)
    standby: bool = False
    key_is_asked_for: bool = False
    allow_code: str | None = None
    stable_path: str | None = None
    template: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    @functools.cached_property  # it renders the unit's template
    def id(self) -> str:
        return _id(self._started_from(), self.service, self.secrets)

    def _started_from(self) -> dict[str, object]:
        """The content that the id is a hash of, without the secrets."""
        unit = "".join((self._unit(_UNNAMED), *self._modules.values(), *self._front.values()))
        return {
            "unit": hashlib.sha256(unit.encode()).hexdigest(),
            "environment": dict(self.environment),
            "checkpoint": {key: self.checkpoint[key] for key in ("repo", "commit")},
            "runtime": dict(self.runtime),
        }

    @property
    def _modules(self) -> dict[str, str]:
        """The source of each module of ours that its vLLM loads, by its file."""
        modules = {API_KEY_MODULE: api_key} if self.key_is_asked_for else {}
        if self.standby:
            modules[STANDBY_MODULE] = standby
        return {name: inspect.getsource(module) for name, module in modules.items()}

    @property
    def _front(self) -> dict[str, str]:
        """The units of the service's front by their files; none where vLLM itself has the port."""
        if not self.standby:
            return {}
        return front.units(self.service, self.bind, self.port, self.user, self.root)

    def _argv(self, name: str) -> tuple[str, ...]:
        """The command line of the release with that name."""
        if not self.standby:
            return self.argv
        return (*self.argv, "--uds", f"{sockets_folder(self.service, name)}/{API_SOCKET}")

    @property
    def directory(self) -> str:
        return f"{self.root}/{self.service}"

    def files(self) -> dict[str, str]:
        """The text of each file of the release directory by name."""
        name = self.id
        values, environment = dict(self.secrets), dict(self.environment)
        own = {**self._modules, **self._front}
        if self._modules:
            environment.pop("PYTHONPATH", None)  # the unit sets it
        if self.key_is_asked_for:
            values[api_key.VARIABLE] = values[API_KEY]
        if values:
            own[SECRETS_FILE] = environment_file(values)
        return {
            "release.json": json.dumps(self._document(name), indent=2, sort_keys=True) + "\n",
            "vllm.service": self._unit(name),
            "argv": "".join(f"{argument}\n" for argument in self._argv(name)),
            "env": environment_file(environment),
            **own,
        }

    def _document(self, name: str) -> dict[str, object]:
        address = ANY_ADDRESS.get(self.bind, f"[{self.bind}]" if ":" in self.bind else self.bind)
        return {
            "schema": "pyinfra-vllm/release/1",
            "id": name,
            "service": self.service,
            "served_model_name": self.served_model_name,
            "url": f"http://{address}:{self.port}",
            "port": self.port,
            "user": self.user,
            "sockets": str(sockets_folder(self.service, name)) if self.standby else None,
            "argv": list(self._argv(name)),
            **self._started_from(),
            "secrets": sorted(self.secrets),
            "checkpoint": dict(self.checkpoint),
            "stop_limit_s": self.stop_limit_s,
            "gpus": list(self.gpus) if self.gpus is not None else None,
            "kernel": list(self.kernel) if self.kernel is not None else None,
            "fit": dict(self.fit),
            "predicted": dict(self.predicted),
            "key_is_asked_for": self.key_is_asked_for,
            "allow_code": self.allow_code,
        }

    def _python_path(self, name: str) -> str | None:
        """PYTHONPATH with our own modules; None where there are none."""
        if not self._modules:
            return None
        return ":".join(
            filter(None, (f"{self.directory}/releases/{name}", self.environment.get("PYTHONPATH")))
        )

    def _standby(self, name: str) -> dict[str, str] | None:
        """The words of the unit that only a server with standby has."""
        if not self.standby:
            return None
        folder = sockets_folder(self.service, name)
        return {
            "variable": standby.CONTROL,
            "folder": str(folder),
            "control": f"{folder}/{CONTROL_SOCKET}",
            "api": f"{name}/{API_SOCKET}",
            "awake": str(awake(self.service)),
            "front": f"vllm-{self.service}-{FRONT}.service",
        }

    def _unit(self, name: str) -> str:
        return rendered(
            self.template or template_text(),
            release=name,
            service=self.service,
            repo=self.checkpoint["repo"],
            commit=self.checkpoint["commit"],
            checkpoint=self.checkpoint["directory"],
            stable_path=self.stable_path,
            root=self.root,
            user=self.user,
            environment_file=f"{self.directory}/releases/{name}/env",
            secrets_file=f"{self.directory}/releases/{name}/{SECRETS_FILE}" if self.secrets else None,
            python_path=self._python_path(name),
            key_is_asked_for=self.key_is_asked_for,
            unit=server_unit(self.service, name) if self.standby else f"vllm-{self.service}.service",
            standby=self._standby(name),
            cache=f"{self.directory}/cache",
            own_cache=f"{self.directory}/releases/{name}/cache",
            argv=self._argv(name),
            stop_limit_s=self.stop_limit_s,
            gpus=self.gpu_count > 0,
        )


def _id(started_from: Mapping[str, Any], service: str, secrets: Mapping[str, str]) -> str:
    content = dict(started_from)
    if secrets:
        content["secrets"] = _digest(service, tuple(sorted(secrets.items())))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:ID_LENGTH]


@functools.lru_cache(maxsize=256)  # slow on purpose, and asked for often
def _digest(service: str, secrets: tuple[tuple[str, str], ...]) -> str:
    """The part of the id's content that stands for the secrets.

    It is in no file, plan or message: the id is all that is ever shown of it.
    """
    return hashlib.scrypt(json.dumps(secrets).encode(), salt=service.encode(), **_SCRYPT).hex()


def base_environment(service_directory: str, runtime_path: str) -> dict[str, str]:
    """The environment of every service: no network but its own port, a cache, no Python code from it."""
    cache = f"{service_directory}/cache"
    return {
        "HOME": cache,
        "XDG_CACHE_HOME": cache,
        "VLLM_CACHE_ROOT": f"{cache}/vllm",
        "TRITON_CACHE_DIR": f"{cache}/triton",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_COLOR": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONNOUSERSITE": "1",
        # ninja, which FlashInfer and Triton call, stands beside the interpreter
        "PATH": f"{runtime_path}/bin:/usr/local/cuda/bin:/usr/local/bin:/usr/bin:/bin",
    }


def template_text() -> str:
    """The project's own `templates/vllm.service.j2`, else the one that came with the package."""
    return shipped.text(TEMPLATE, Path.cwd())


# The path of a release's own socket differs between any two.
_OWN = "--uds"


def difference(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """The changes between two command lines, flag by flag: `- old` and `+ new`, in the new one's order."""
    before, after = _flags(old), _flags(new)
    gone = [f"- {' '.join(flag)}" for flag in before if flag not in after and flag[0] != _OWN]
    come = [f"+ {' '.join(flag)}" for flag in after if flag not in before and flag[0] != _OWN]
    return gone + come


def changed_flags(old: Sequence[str], new: Sequence[str]) -> dict[str, Pair]:
    """The flags that differ between two command lines; True stands for one without a value."""
    before, after = _values(old), _values(new)
    return _changed(before, after)


def changed_environment(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, Pair]:
    """The variables that differ between two environments without secrets."""
    return _changed(old, new)


def difference_of_environment(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The changes between two environments without secrets, variable by variable, by name."""
    gone = [f"- {name}={old[name]}" for name in sorted(old) if new.get(name) != old[name]]
    come = [f"+ {name}={new[name]}" for name in sorted(new) if old.get(name) != new[name]]
    return gone + come


def difference_of_secrets(old: StagedRelease | None, new: Release) -> list[str]:
    """The changes between a staged release's secrets (its release.json) and those of another, by name only.

    Nobody has the old values here: they were the new ones if these give the old release its very id.
    """
    before, after = set(old.get("secrets", ())) if old else set[str](), set(new.secrets)
    changes = [f"- {name}" for name in sorted(before - after)] + [
        f"+ {name}" for name in sorted(after - before)
    ]
    if common := " or ".join(sorted(before & after)):
        if before - after:
            changes.append(f"perhaps another value of {common}")
        elif old and not _has_values(old, {name: new.secrets[name] for name in before}):
            changes.append(f"another value of {common}")
    return changes


def difference_of_checkpoint(old: StagedRelease, new: Release) -> str:
    """`org/model@COMMIT -> org/model@COMMIT`; empty where both releases have the same checkpoint."""
    before, after = named_checkpoint(old["checkpoint"]), named_checkpoint(new.checkpoint)
    return f"{before} -> {after}" if before != after else ""


def named_checkpoint(found: Mapping[str, Any]) -> str:
    """`org/model@COMMIT`, the commit shortened."""
    return f"{found.get('repo', '')}@{found.get('commit', '')[:12]}"


def same_but_for_values(old: StagedRelease, new: Release) -> bool:
    """Whether a staged release (its release.json) is another one with some values of the same secrets."""
    return _parts(old) == new._started_from() and old.get("secrets") == sorted(new.secrets)


def _has_values(old: StagedRelease, secrets: Mapping[str, str]) -> bool:
    return _id(_parts(old), str(old.get("service")), secrets) == old["id"]


def _parts(old: StagedRelease) -> dict[str, object]:
    """The content that a staged release's id is a hash of, without the secrets.

    One of before they were in it has no `unit`.
    """
    checkpoint = {key: old["checkpoint"].get(key) for key in ("repo", "commit")}
    return {**{key: old.get(key) for key in ("unit", "environment", "runtime")}, "checkpoint": checkpoint}


def _changed(before: Mapping[str, Value], after: Mapping[str, Value]) -> dict[str, Pair]:
    return {
        name: (before.get(name), after.get(name))
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    }


def _values(argv: Sequence[str]) -> dict[str, Value]:
    """Each flag of a command line with its value; several values as one text."""
    found: dict[str, list[str]] = {}
    for word in argv:
        if word.startswith("--"):
            words = found.setdefault(word, [])
        elif found:
            words.append(word)
    return {flag: " ".join(words) or True for flag, words in found.items() if flag != _OWN}


def _flags(argv: Sequence[str]) -> list[tuple[str, ...]]:
    flags: list[tuple[str, ...]] = []
    for argument in argv:
        if argument.startswith("--") or not flags or len(flags[-1]) == 2 or not flags[-1][0].startswith("--"):
            flags.append((argument,))
        else:
            flags[-1] = (*flags[-1], argument)
    return flags
