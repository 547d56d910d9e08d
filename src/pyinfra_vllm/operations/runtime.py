"""Brings a vLLM onto a host: a venv of its own for each version, or one that the operator keeps."""

from __future__ import annotations

import platform
import sys
from collections.abc import Generator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import uv
from pyinfra import host, logger, state
from pyinfra.api import FunctionCommand, Host, State, operation
from pyinfra.api.command import PyinfraCommand

from pyinfra_vllm.config import Runtime as Declared
from pyinfra_vllm.config import Service
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.facts.runtime import Runtime
from pyinfra_vllm.facts.told import asked
from pyinfra_vllm.on_host.inspect.runtime import Installed, same, unit_key
from pyinfra_vllm.operations.util.refuse import alone, refuse
from pyinfra_vllm.operations.util.remote import Remote, as_lines
from pyinfra_vllm.operations.util.together import runtime_path
from pyinfra_vllm.operations.util.unit import Unit
from pyinfra_vllm.printable import printable

# The host's own, or the one that was sent if it still is, byte for byte, what was sent.
_FIND_UV = (
    'command -v uv || { echo "$2  $1" | sha256sum --check --status 2>/dev/null && test -x "$1" && echo "$1";'
    " } || true"
)


@operation()
@alone
def present(root: str, service: Service) -> Generator[PyinfraCommand, None, None]:
    """
    Have the declared vLLM on the host. A venv by path is only looked at; one by version is installed once.

    + root: where pyinfra-vllm keeps its files on the host
    + service: its declaration

    **Example:**

    .. code:: python

        runtime.present(name="chat: install the runtime", root=mine.root, service=chat)
    """
    path = runtime_path(root, service)
    declared = service.runtime
    found = asked(host, Runtime, path=path)
    if reason := problem(path, declared, found):
        yield refuse(reason)
    elif found is not None:
        host.noop(f"{path} has {found.distribution} {found.version}")
    else:
        if not state.is_executing:
            source = declared.index or "the default index"
            wanted = " ".join((f"{declared.package}=={declared.version}", *declared.packages))
            logger.info(f"{host.print_prefix}{service.name}: would install {wanted} from {source} to {path}")
        yield FunctionCommand(install, (root, _request(root, declared)), {})


def _request(root: str, declared: Declared) -> dict[str, object]:
    return {
        "root": root,
        "name": declared.version,
        "package": declared.package,
        "version": declared.version,
        "packages": list(declared.packages),
        "index": declared.index,
    }


def problem(path: str, declared: Declared, found: Installed | None) -> str | None:
    """Why the venv at `path` can't be used; None where it can, or can be installed."""
    if declared.version is None:
        if found is None:
            return (
                f"{path} holds no vLLM. Nothing was changed. Correct runtime.path, or declare"
                " runtime.version."
            )
        if not found.executable:
            return f"{path} has {found.distribution} {found.version} but no bin/vllm. Nothing was changed."
        return None
    if found is None:
        return None
    if found.distribution != declared.package or not same(found.version, declared.version):
        return (
            f"{path} holds {found.distribution} {found.version}, declared is {declared.package} "
            f"{declared.version}. It was left as it is, as a release may run from it. Move it away, or"
            " declare runtime.path."
        )
    if found.built is not None and found.built.packages != list(declared.packages):
        return (
            f"{path} was installed with the packages {found.built.packages}, declared are "
            f"{list(declared.packages)}. It was left as it is, as a release may run from it. Declare a venv"
            " of your own as runtime.path, or remove this one when no release needs it."
        )
    return None


def install(state: State, host: Host, root: str, request: Mapping[str, Any]) -> bool:
    """Runs on the control machine when the operation is executed; the host installs by itself."""
    what = f"{request['package']} {request['version']}"
    unit = Unit(host, f"build-{unit_key(request['name'])}", f"install {what}")
    try:
        request = {**request, "uv": _uv(host, root)}
        unit.run(root, "build", request)
    except HostError as error:
        logger.error(f"{host.print_prefix}{what} is not installed: {printable(error)}")
        return False
    logger.info(f"{host.print_prefix}{what} is installed")
    return True


def _uv(host: Host, root: str) -> str:
    """The host's own uv, or else the control machine's, sent to it.

    Raises HostError when neither can be used.
    """
    remote, sent = Remote(host), f"{root}/bin/uv"
    ours = _as_lines(uv.find_uv_bin())
    sha256 = ours[0]
    found = remote.run("sh", "-c", _FIND_UV, "sh", sent, sha256).strip()
    if found:
        return found
    system, _, machine = remote.run("uname", "-sm").strip().partition(" ")
    if (system.lower(), machine) != (sys.platform, platform.machine()):
        raise HostError(
            f"it has no uv, and this machine's ({sys.platform} {platform.machine()}) does not run on "
            f"{printable(f'{system} {machine}', 80)}. "
            f"Install uv on the host, or declare runtime.path"
        )
    logger.info(f"{host.print_prefix}sending uv")
    remote.write(sent, ours, "755")
    return sent


@cache
def _as_lines(path: str) -> tuple[str, ...]:
    """Encoded once: uv has 38 MB, and many hosts may get it at once."""
    return as_lines(Path(path).read_bytes())
