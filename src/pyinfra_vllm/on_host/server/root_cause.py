"""Finds out of a service's log why its start failed: the exception of the deepest process that failed. Pure.

vLLM is several processes. A worker that fails makes the engine fail, and the engine the API server, whose
traceback comes last and says only "See root cause above". systemd's lines count if it can't run vLLM.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

TEXT_LIMIT = 500  # characters of the one line that names the cause
TRACEBACK_LINES, LINE_LIMIT = 24, 200  # the newest calls of a traceback
TAIL_LINES = 20  # where no cause is found, the log's last lines

# What may be gone at the next start: memory that a process on its way out still holds, a port that is not
# free yet, the network between GPUs. A floor below every other rule: whatever an exception is called, this
# text in it means "try again".
PASSING = re.compile(
    r"Free memory on device|out of memory|Cannot allocate memory|Error in memory profiling|NCCL|CUDA"
    r" error|CUDA driver error"
    r"|Address already in use|timed? ?out|Timeout|Connection|temporarily unavailable|No space left|Too many"
    r" open files|/dev/shm",
    re.IGNORECASE,
)
# Exceptions that come from what was declared or from what lies on the disk: the next start would raise them
# again.
LASTING = re.compile(
    r"\w*ValidationError|ValueError|TypeError|KeyError|IndexError|AttributeError|NameError|AssertionError|NotImplementedError"
    r"|SyntaxError|ImportError|ModuleNotFoundError|FileNotFoundError|PermissionError|NotADirectoryError|IsADirectoryError"
    r"|JSONDecodeError|UnicodeDecodeError|SafetensorError|TemplateSyntaxError|LocalEntryNotFoundError|RepositoryNotFoundError"
)
# transformers raises OSError for files that a checkpoint lacks or that it can't read.
LASTING_TEXT = re.compile(
    r"does not appear to have a file named|Can't load|Unable to load|not a valid model identifier|is not a"
    r" valid JSON file"
    r"|Incorrect path_or_model_id|No such file or directory|Permission denied|size mismatch|Cannot find any"
    r" model weights"
)
# What a process says because another one failed.
SYMPTOM = re.compile(
    r"See root cause above|[Ss]ee stack trace|Engine core initialization failed|WorkerProc initialization"
    r" failed|EngineDeadError"
    r"|died unexpectedly|cancelled|^(SystemExit|KeyboardInterrupt|EOFError|BrokenPipeError|ConnectionResetError|CancelledError)\b"  # noqa: E501
)
DEPTHS = (("worker", 3), ("enginecore", 2))  # by how a process's name begins; every other is the API server

_PROCESS = re.compile(r"\((?P<name>[A-Za-z][\w-]*)(?: rank=\d+)? pid=(?P<pid>\d+)\) ?")
_HEADER = re.compile(
    r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^]]*\])? ?"
)
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_EXCEPTION = re.compile(r"(?P<type>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$", re.DOTALL)
_ARGUMENTS = re.compile(r"[\w./-]+(?: \w+)?: error: .+")
_RESTART = re.compile(r"\S+\.service: Scheduled restart job")
_SYSTEMD = re.compile(r"\S+\.service: (?P<text>.+)")
_SYSTEMD_FAILED = re.compile(
    r"Failed (?!with result)|Unable to|.*OOM killer|Main process exited, code=(killed|dumped)"
)
_NEVER_RAN = re.compile(r"Main process exited, code=exited, status=2\d\d/")
_NOISE = re.compile(
    r'HTTP/1\.1" \d|\] Route: /|\| *\d+/\d+ \[|\d+% Completed|it/s|[▀▄█]|^\s*$|Capturing CUDA'
    r" graphs|^\S+\.service: Consumed"
)
_FIELD = re.compile(r"[\w.\[\]-]+")
_PYDANTIC = re.compile(r" \[type=\w+, input_value=.*|^For further information visit \S+$")


@dataclass(frozen=True)
class Cause:
    """Why a start failed.

    process: which one failed ("EngineCore", "Worker_TP0", "systemd"); empty for vLLM's main process
    text: one line
    traceback: its newest calls, oldest first, without vLLM's prefixes
    lasting: the next start would fail for the same
    """

    process: str
    text: str
    traceback: tuple[str, ...] = ()
    lasting: bool = False

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.process, self.text)))


@dataclass(frozen=True)
class _Line:
    process: str
    pid: str
    header: str  # with time and place; empty where a line was printed, not logged
    text: str


@dataclass(frozen=True)
class _Failure:
    process: str
    exception: str  # its line, with what follows it
    traceback: tuple[str, ...]


def find(log: Iterable[str]) -> Cause | None:
    """The cause of the newest start that failed; None where the log names none.

    `log`: the unit's lines, systemd's among them.
    """
    for start in reversed(_starts(log)):
        cause = _of_one_start(start)
        if cause:
            return cause
    return None


def explain(log: list[str]) -> list[str]:
    """The cause and its traceback; else the log's last lines without progress bars and access logs."""
    cause = find(log)
    if cause:
        return [str(cause), *cause.traceback]
    return [line[:LINE_LIMIT] for line in log if not _NOISE.search(line)][-TAIL_LINES:]


def _starts(log: Iterable[str]) -> list[list[str]]:
    starts: list[list[str]] = [[]]
    for line in log:
        if _RESTART.match(line):
            starts.append([])
        starts[-1].append(line)
    return starts


def _of_one_start(log: list[str]) -> Cause | None:
    lines = [_parsed(line) for line in log]
    # A stable sort: the first of the deepest.
    failures = sorted(_failures(lines), key=lambda failure: -_depth(failure.process))
    causes = [failure for failure in failures if not SYMPTOM.search(failure.exception)]
    if causes:
        return _described(causes[0])
    return _refused_arguments(lines) or _by_systemd(log) or (_described(failures[0]) if failures else None)


def _parsed(line: str) -> _Line:
    text = _ESCAPES.sub("", line)
    process = _PROCESS.match(text)
    if process:
        text = text[process.end() :]
    header = _HEADER.match(text)
    if header:
        text = text[header.end() :]
    return _Line(
        process["name"] if process else "",
        process["pid"] if process else "",
        header[0] if header else "",
        text,
    )


def _depth(process: str) -> int:
    name = process.lower().replace("vllmworker", "worker")
    return next((depth for start, depth in DEPTHS if name.startswith(start)), 1)


def _failures(lines: list[_Line]) -> Iterator[_Failure]:
    """The exceptions that the processes printed; what several processes print at once is taken apart."""
    streams: dict[str, list[_Line]] = {}
    for line in lines:
        streams.setdefault(line.pid, []).append(line)
    for stream in streams.values():
        position = 0
        while position < len(stream):
            if stream[position].text.endswith(_TRACEBACK):
                failure, position = _traceback(stream, position)
                if failure:
                    yield failure
            else:
                position += 1


def _traceback(stream: list[_Line], begin: int) -> tuple[_Failure | None, int]:
    """The failure whose traceback begins there, chained ones included, and where the stream goes on."""
    exceptions: list[str] = []
    position = begin
    while True:
        position += 1  # past "Traceback"
        while position < len(stream) and stream[position].text.startswith(" "):
            position += 1
        exception, position = _exception(stream, position)
        if exception:
            exceptions.append(exception)
        following = _chained(stream, position)
        if following is None:
            break
        position = following
    if not exceptions:
        return None, position
    telling = [exception for exception in exceptions if not SYMPTOM.search(exception)]
    calls = [line.text for line in stream[begin:position] if line.text.strip(" ^~") and line.text.strip()]
    shown = tuple(text[:LINE_LIMIT] for text in calls[-TRACEBACK_LINES:])
    return _Failure(stream[begin].process, (telling or exceptions)[-1], shown), position


def _exception(stream: list[_Line], position: int) -> tuple[str, int]:
    """The exception's line with its message: all that was logged with it, or is indented below it."""
    if position >= len(stream) or not _EXCEPTION.match(stream[position].text):
        return "", position
    first = stream[position]
    words = [first.text]
    position += 1
    while position < len(stream):
        line = stream[position]
        belongs = line.header == first.header and bool(line.text.strip()) and _TRACEBACK not in line.text
        if not belongs or not (first.header or line.text.startswith(" ") or _is_field(stream, position)):
            break
        words.append(line.text.strip())
        position += 1
    return "\n".join(words), position


def _is_field(stream: list[_Line], position: int) -> bool:
    """Pydantic names the field on a line of its own, and what is wrong with it indented below."""
    below = stream[position + 1].text if position + 1 < len(stream) else ""
    return below.startswith(" ") and _FIELD.fullmatch(stream[position].text) is not None


def _chained(stream: list[_Line], position: int) -> int | None:
    """Where the next traceback of the same failure begins."""
    rest = [
        (at, line) for at, line in enumerate(stream[position : position + 6], position) if line.text.strip()
    ]
    if len(rest) >= 2 and rest[0][1].text.startswith(_CHAINED) and rest[1][1].text.endswith(_TRACEBACK):
        return rest[1][0]
    return None


def _described(failure: _Failure) -> Cause:
    first, *more = failure.exception.splitlines()
    found = _EXCEPTION.match(first)
    assert found
    kind = found["type"].rpartition(".")[2]
    words = [_PYDANTIC.sub("", word) for word in (found["message"] or "", *more)]
    text = ": ".join(filter(None, (kind, " ".join(filter(None, words)))))
    return Cause(failure.process, text[:TEXT_LIMIT], failure.traceback, _lasting(kind, text))


def _lasting(kind: str, exception: str) -> bool:
    if PASSING.search(exception):
        return False
    return bool(LASTING.fullmatch(kind) or LASTING_TEXT.search(exception))


def _refused_arguments(lines: list[_Line]) -> Cause | None:
    refused = [at for at, line in enumerate(lines) if _ARGUMENTS.match(line.text) and not line.header]
    if not refused:
        return None
    more = itertools.takewhile(lambda line: line.text.startswith(" "), lines[refused[-1] + 1 :])
    words = [lines[refused[-1]].text, *(_PYDANTIC.sub("", line.text.strip()) for line in more)]
    return Cause("", " ".join(filter(None, words))[:TEXT_LIMIT], lasting=True)


def _by_systemd(log: list[str]) -> Cause | None:
    """Systemd's own reason: it could not run vLLM at all, or the kernel killed it."""
    said = [found["text"] for found in map(_SYSTEMD.match, log) if found]
    failed = [text for text in said if _SYSTEMD_FAILED.match(text)]
    never_ran = [text for text in said if _NEVER_RAN.match(text)]
    if not failed and not never_ran:
        return None
    return Cause("systemd", [*failed, *never_ran][0][:TEXT_LIMIT], lasting=bool(never_ran))
