"""Asks the vLLM that will serve a release whether it accepts it, before anything is switched.

The release's own unit is run once with another program in the server's place (in_runtime/rehearsal.py), at
low priority: the same user, environment, sandbox and command line, but no secrets and a temporary cache.
That vLLM parses the command line, builds the engine's configuration from the checkpoint and loads the
tokenizer; it loads no weights. Its answer stays with the release.
"""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..server.release import NotReady, Release, load
from ..state import durable, task
from ..state.paths import TRANSIENT_UNITS, ServicePaths
from ..state.status import RUN, Status

LIMIT_S = 600  # at low priority beside a busy server
MOST_BYTES = 64 << 10  # of an answer
TEMPORARY = "/tmp/pyinfra-vllm"  # PrivateTmp= of the unit: gone with it
# A program that ends by itself must not have these, or they touch the server's own files.
DROPPED = frozenset(
    (
        *(
            "Type",
            "Restart",
            "RestartSec",
            "RestartMode",
            "KillMode",
            "WatchdogSec",
            "NotifyAccess",
            "CollectMode",
        ),
        *("TimeoutStopSec", "TimeoutStartSec", "RuntimeMaxSec", "OOMScoreAdjust"),
        *(
            "Nice",
            "CPUSchedulingPolicy",
            "IOSchedulingClass",
            "StandardInput",
            "StandardOutput",
            "StandardError",
        ),
        *("ExecCondition", "ExecStartPre", "ExecStartPost", "ExecReload", "ExecStop", "ExecStopPost"),
        *("BindPaths", "EnvironmentFile", "UnsetEnvironment", "RuntimeDirectory", "RuntimeDirectoryMode"),
    )
)
UNKNOWN_VARIABLE = "Unknown vLLM environment variable"
MAY_BE_LEFT_OUT = ("quantization",)  # of an answer: where there is none
SHOWN = ("dtype", "quantization", "max_model_len", "kv_cache_dtype")
_SECTION = re.compile(r"\[(\w+)\]")
_ACCEPTED, _REFUSED, _NOT_ASKED = "accepted", "refused", "not asked"


class Refused(task.TaskError):
    """vLLM does not accept the release: the message has its own reason."""


@dataclass(frozen=True)
class Request:
    """Which release of which service is asked about."""

    paths: ServicePaths
    release: str
    run: Path

    @property
    def name(self) -> str:
        return f"rehearse-{self.paths.name}"

    @property
    def lock(self) -> Path:
        return self.run / f"{self.name}.lock"

    @property
    def status(self) -> Path:
        return self.run / f"{self.name}.json"

    @property
    def purpose(self) -> str:
        return f"asking vLLM about release {self.release} of {self.paths.name}"


@dataclass(frozen=True)
class Answer:
    """The answer of vLLM.

    derived: settings as vLLM worked them out
    seconds, memory_bytes: what the question itself took, on the host
    disagreements: settings that vLLM derives otherwise than the catalog predicted
    """

    outcome: str
    reason: str = ""
    derived: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    memory_bytes: int = 0
    disagreements: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        return {
            **vars(self),
            "warnings": list(self.warnings),
            "derived": self.derived or {},
            "disagreements": list(self.disagreements),
        }


def main(argv: list[str]) -> int:
    """Ask about the release that a request file names (see task.run)."""
    return task.run("rehearse", argv, read_request, lambda request: Status(request.status), rehearse)


def read_request(path: Path) -> Request:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        paths = ServicePaths(Path(content["root"]), str(content["service"]))
        return Request(paths, str(content["release"]), Path(content.get("run", RUN)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise task.TaskError(f"{path} is no request to rehearse: {type(error).__name__}: {error}") from error


def rehearse(request: Request, status: Status) -> None:
    """Have the answer laid beside the release. Raises Refused where vLLM does not accept it."""
    try:
        release = load(request.paths, request.release)
    except NotReady as error:
        raise task.TaskError(str(error)) from error
    status.say("asking", f"vLLM {release.runtime_version} is asked about release {release.id}")
    answer = ask(request, release)
    answer = replace(answer, disagreements=disagreements(answer, release.predicted))
    durable.write_json(request.paths.rehearsal(release.id), answer.document())
    if answer.outcome == _REFUSED:
        raise Refused(f"vLLM {release.runtime_version} does not accept release {release.id}: {answer.reason}")
    status.done(told(answer, release))


def ask(request: Request, release: Release) -> Answer:
    """Run the question as a unit of its own and read the answer.

    Not to get one is no refusal: the catalog's word stands.
    """
    unit = f"pyinfra-vllm-{request.name}-{release.id}.service"
    program, answer = request.run / f"{request.name}.py", request.run / f"{request.name}.answer"
    environment = request.run / f"{request.name}.env"
    source = pkgutil.get_data("pyinfra_vllm.in_runtime", "rehearsal.py") or b""
    files = request.paths.release(release.id)
    written = TRANSIENT_UNITS / unit
    try:
        text = unit_text(
            (files / "vllm.service").read_text(encoding="utf-8"), release, program, answer, environment
        )
        own = (files / "env").read_text(encoding="utf-8").replace(str(request.paths.cache), TEMPORARY)
        durable.write_text(program, source.decode())
        durable.write_text(environment, own)
        answer.unlink(missing_ok=True)
        durable.write_text(written, text, durable.PUBLIC)
        said = _start(unit)
        return read_answer(answer) or Answer(
            _NOT_ASKED, said or f"it gave no answer: see `journalctl --unit {unit}`"
        )
    except NotAsked as error:
        return Answer(_NOT_ASKED, str(error))
    finally:
        for path in (written, program, answer, environment):
            with suppress(OSError):
                path.unlink()


class NotAsked(Exception):
    """The release's unit can't be turned into a question."""


def unit_text(text: str, release: Release, program: Path, answer: Path, environment: Path) -> str:
    """Return the release's unit with the question in the server's place.

    Raises NotAsked where its ExecStart is not vLLM's own.

    + text: the release's `vllm.service`
    + program, answer: the question on standard input, and its answer
    + environment: the variables that the server would have
    """
    kept = [
        "[Unit]",
        f"Description=Ask vLLM about release {release.id}",
        "CollectMode=inactive-or-failed",
        "[Service]",
    ]
    found = False
    for section, key, value in settings(text):
        if section != "Service" or key in DROPPED:
            continue
        if key == "ExecStart":
            server = f'"{release.executable}"'
            found = server in value
            value = value.replace(server, f'"{release.executable.with_name("python")}" -', 1)
        kept.append(f"{key}={value}")
    if not found:
        raise NotAsked(f"the template's ExecStart= does not start {release.executable}")
    return "\n".join(
        [
            *kept,
            f"EnvironmentFile={str(environment).replace('%', '%%')}",
            "Type=oneshot",
            f"TimeoutStartSec={LIMIT_S}",
            "Nice=10",  # as all that is staged beside a server (operations/util/unit.py)
            "IOSchedulingClass=idle",
            f"StandardInput=file:{program}",
            f"StandardOutput=file:{answer}",
            "StandardError=journal",  # else it goes where standard output goes
            "",
        ]
    )


def settings(text: str) -> Iterable[tuple[str, str, str]]:
    """Section, key and value of every setting of a unit file, continued lines joined."""
    section, pending = "", ""
    for line in text.splitlines():
        if line.lstrip().startswith(("#", ";")) or not line.strip():
            continue
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        whole, pending = pending + line, ""
        if named := _SECTION.fullmatch(whole.strip()):
            section = named[1]
        elif "=" in whole:
            key, _, value = whole.partition("=")
            yield (
                section,
                key.strip(),
                " ".join(value.split()) if key.strip() == "ExecStart" else value.strip(),
            )


def _start(unit: str) -> str:
    """Run the unit to its end; returns systemd's own words where it did not end well."""
    try:
        done = subprocess.run(
            ["systemctl", "start", unit],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S + 60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.strip()


def read_answer(path: Path) -> Answer | None:
    """Read the answer that a process of the service's user wrote: bounded, and only of these kinds."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(MOST_BYTES))
        if not content["asked"]:
            return Answer(_NOT_ASKED, _text(content["reason"]))
        error = content["error"]
        return Answer(
            outcome=_ACCEPTED if error is None else _REFUSED,
            reason=_text(error or ""),
            derived={_text(key): _plain(value) for key, value in list(content["derived"].items())[:50]},
            warnings=tuple(_text(line) for line in content["warnings"][:20]),
            seconds=float(content["seconds"]),
            memory_bytes=int(content["memory_bytes"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _text(value: Any) -> str:
    return str(value)[:600]


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float)) else _text(value)


def disagreements(answer: Answer, predicted: dict[str, Any]) -> tuple[str, ...]:
    """The settings that vLLM derives otherwise than the catalog predicted, each with both values."""
    if answer.outcome != _ACCEPTED:
        return ()
    derived = answer.derived or {}
    return tuple(
        f"{name} {derived.get(name, 'none')} (predicted: {'none' if value is None else value})"
        for name, value in predicted.items()
        if (name in derived or name in MAY_BE_LEFT_OUT)
        and _one_spelling(name, derived.get(name)) != _one_spelling(name, value)
    )


def _one_spelling(name: str, value: Any) -> str:
    """One word for those that mean the same: `torch.float16` and `half`, `awq_marlin` and `auto_awq`."""
    word = str(value).lower()
    if name == "dtype":
        word = word.replace("torch.", "").replace("half", "float16")
    elif name == "quantization":
        word = word.replace("auto_", "").replace("_marlin", "")
    elif name == "kv_cache_dtype" and word.startswith("fp8"):
        word = "fp8"
    return word


def told(answer: Answer, release: Release) -> str:
    """One line for the operator."""
    who = f"vLLM {release.runtime_version}"
    if answer.outcome == _NOT_ASKED:
        return f"{who} was not asked ({answer.reason}): only the catalog checked release {release.id}"
    words = ", ".join(f"{key} {value}" for key, value in (answer.derived or {}).items() if key in SHOWN)
    unknown = [line.rpartition(" ")[2] for line in answer.warnings if line.startswith(UNKNOWN_VARIABLE)]
    ignored = f"; it ignores {', '.join(unknown)}" if unknown else ""
    cost = f"{answer.seconds:.0f} s, {answer.memory_bytes / 1e9:.1f} GB of host memory"
    differs = "; not as the catalog predicted: " + ", ".join(answer.disagreements)
    accepted = f"{who} accepts release {release.id}: {words}{ignored} ({cost})"
    return accepted + (differs if answer.disagreements else "")
