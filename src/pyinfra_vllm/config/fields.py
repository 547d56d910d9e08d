"""The kinds of text that a declaration may hold, as data: a pattern, and a sentence for what is allowed.

Everything here ends in a unit file, an environment file or an argument list on a host, so no kind of text
lets a control character through: an operator's string can never become a second line.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

import packaging.requirements
import packaging.version
from pydantic import AfterValidator, BeforeValidator, Field

from ..catalog import flags, table
from ..on_host.state.paths import FRONT, SHARED
from .problems import SECRET_NAME, ItemError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Code points that are no characters: halves of surrogate pairs have no UTF-8, and systemd drops a line with
# the others (unichar_is_valid in its utf8.c), so that a unit would come without its ExecStart=.
_NO_CHARACTER = re.compile(
    "[\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
    + "]"
)

# Environment that the product sets itself, and the key that governs it.
_MANAGED_ENVIRONMENT = {
    "CUDA_DEVICE_ORDER": "gpus",
    "CUDA_VISIBLE_DEVICES": "gpus",
    "HF_HUB_OFFLINE": "(always on: a service never downloads)",
    "TRANSFORMERS_OFFLINE": "(always on: a service never downloads)",
    "VLLM_CACHE_ROOT": "(each release has a cache of its own)",
}


def no_control(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("must not contain control characters or line breaks")
    if _NO_CHARACTER.search(text):
        raise ValueError("must not contain code points that are no characters")
    return text


def _matching(pattern: str, allowed: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if compiled.fullmatch(text) is None:
            raise ValueError(f"must be {allowed}")
        return text

    return check


def _not_shared(name: str) -> str:
    """A service's folder lies beside those that all services share: under such a name they would be one."""
    if name in SHARED:
        raise ValueError(f"must be another name: every host has a folder {name} that its services share")
    return name


def _no_front(name: str) -> str:
    """The front of a service with standby has a unit of that name (on_host/state/paths.py)."""
    if name.endswith(f"-{FRONT}"):
        other = name[: -len(FRONT) - 1]
        raise ValueError(f"must not end in -{FRONT}: a service {other} names the unit of its front so")
    return name


def _absolute(text: str) -> str:
    if re.fullmatch(r"(/[A-Za-z0-9._+@-]+)+/?", text) is None or ".." in text.split("/"):
        raise ValueError("must be an absolute path of letters, digits and . _ + @ - without `..`")
    return text.rstrip("/")


def _repository(text: str) -> str:
    part = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
    if re.fullmatch(f"{part}/{part}", text) is None or "--" in text or ".." in text or len(text) > 96:
        raise ValueError('must be a repository id like "Qwen/Qwen3-32B-AWQ"')
    return text


def _revision(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", text) is None or ".." in text:
        raise ValueError("must be a branch, a tag or a commit")
    return text


def _pin(text: str) -> str:
    checkpoint, at, revision = text.partition("@")
    if at:
        return f"{_repository(checkpoint)}@{_revision(revision)}"
    if re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}/[0-9a-f]{12}", text) is None:
        raise ValueError(
            'must be a checkpoint like "Qwen/Qwen3-32B-AWQ@main" (or @ a commit), or a release like'
            ' "chat/4c0ffee4c0de"'
        )
    return text


def _address(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise ValueError('must be an IP address of the host, like "127.0.0.1" or "0.0.0.0"') from error
    return text


def _one_address(text: str) -> str:
    if ipaddress.ip_address(_address(text)).is_unspecified:
        raise ValueError("must be one address of the host, at which the others reach it")
    return text


def _user(text: str) -> str:
    if text == "root":
        raise ValueError("a service never runs as root; name another user")
    if re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", text) is None:
        raise ValueError("must be a system user name: a-z, 0-9, _ and -, at most 32")
    return text


def _index(text: str) -> str:
    parts = urlsplit(no_control(text))
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not carry credentials; give them to the host, for example in its netrc")
    if text.startswith("/"):
        return _absolute(text)
    if parts.scheme not in ("https", "http", "file") or " " in text or not (parts.netloc or parts.path):
        raise ValueError("must be an http(s) or file URL, or the absolute path of a wheel directory")
    return text


def _version(text: str) -> str:
    """In the form that the installed package says, since the runtime's folder is named by it."""
    try:
        found = packaging.version.Version(text)
    except ValueError:
        found = None
    if found is None or found.epoch or len(found.release) < 2 or str(found) != text:
        written = f", written {found}" if found and str(found) != text and not found.epoch else ""
        raise ValueError(f'must be a released version like "0.33.0"{written}')
    return text


def _requirement(text: str) -> str:
    """Without spaces, which mean nothing in it; no URL, since that may carry credentials."""
    try:
        found = packaging.requirements.Requirement(no_control(text))
    except ValueError:
        found = None
    if found is None or found.url or found.marker:
        raise ValueError('must be a requirement like "flashinfer-python==0.6.1"')
    return "".join(text.split())


def _environment(values: dict[str, str]) -> dict[str, str]:
    for name in values:
        if SECRET_NAME.search(name):
            raise ItemError(name, "looks like a secret; declare it under `secrets` instead")
        if name in _MANAGED_ENVIRONMENT:
            raise ItemError(name, f"is set by the product: {_MANAGED_ENVIRONMENT[name]}")
    return values


def _secrets(values: dict[str, str]) -> dict[str, str]:
    for name in values:
        if name in table("security.yaml")["settings"]:
            raise ItemError(name, "is no secret; declare it under `environment`, where it is judged")
    return values


def _flags(values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        if re.fullmatch(r"--[a-z0-9][a-z0-9-]*(\.[A-Za-z0-9_.-]+)?", name) is None:
            raise ItemError(name, 'is not a long vLLM flag like "max-num-seqs"')
        if refusal := flags.refusal(name):
            raise ItemError(name, refusal)
        try:
            plain(value)
        except ValueError as error:
            raise ItemError(name, str(error)) from error
    return values


def plain(value: object) -> object:
    """The value when it is plain data: what JSON can hold, without control characters. Raises ValueError."""
    if isinstance(value, str):
        no_control(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            plain(key)
            plain(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            plain(item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise ValueError("must be text, a number, true/false, a list, a map or None")
    return value


def _each_once(names: tuple[int | str, ...]) -> tuple[int | str, ...]:
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise ValueError(f"names GPU {twice[0]} twice; name each once")
    return names


def _one_kind(names: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Two names of different kinds could be one GPU, and CUDA gives a process only one MIG instance."""
    if len({isinstance(name, int) for name in names}) > 1:
        raise ValueError("names GPUs by index and by UUID; name all of them by one or all by the other")
    if len(names) > 1 and any(str(name).startswith("MIG-") for name in names):
        raise ValueError("names a MIG instance beside another GPU; CUDA gives a process one instance only")
    return names


def as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Text = Annotated[str, AfterValidator(no_control)]
ServiceName = Annotated[
    str,
    AfterValidator(_matching(r"[a-z0-9][a-z0-9-]{0,39}", "a name of a-z, 0-9 and -, at most 40 characters")),
    AfterValidator(_not_shared),
    AfterValidator(_no_front),
]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Repository = Annotated[str, AfterValidator(_repository)]
Revision = Annotated[str, AfterValidator(_revision)]
Pin = Annotated[str, AfterValidator(_pin)]
Address = Annotated[str, AfterValidator(_address)]
OneAddress = Annotated[str, AfterValidator(_one_address)]
User = Annotated[str, AfterValidator(_user)]
IndexLocation = Annotated[str, AfterValidator(_index)]
Version = Annotated[str, AfterValidator(_version)]
Requirement = Annotated[str, AfterValidator(_requirement)]
EnvironmentName = Annotated[
    str, AfterValidator(_matching(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable"))
]
Port = Annotated[int, Field(ge=1, le=65535)]
Environment = Annotated[dict[EnvironmentName, Text], AfterValidator(_environment)]
Secrets = Annotated[dict[EnvironmentName, EnvironmentName], AfterValidator(_secrets)]
Flags = Annotated[dict[str, Any], AfterValidator(_flags)]
PlainMap = Annotated[dict[str, Any], AfterValidator(plain)]
GpuUuid = Annotated[
    str,
    AfterValidator(
        _matching(
            r"(GPU|MIG)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
            (
                "a whole UUID as `nvidia-smi -L` prints it, in lower case, of a card (GPU-...) or a MIG"
                " instance (MIG-...)"
            ),
        )
    ),
]
GpuNames = Annotated[
    tuple[Annotated[int, Field(ge=0)] | GpuUuid, ...],
    BeforeValidator(as_tuple),
    AfterValidator(_each_once),
    AfterValidator(_one_kind),
]
