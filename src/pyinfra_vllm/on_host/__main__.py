"""The host's command line. The control machine calls it; a person may, too: each verb has --help."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Callable, Optional

from .server import front, metrics, systemd
from .server import release as releases
from .staging import build, bytecode, compiled, fetch, prune, rehearsal, swarm
from .state import follow, lock, observe, private
from .state.paths import DEFAULT_ROOT, ServicePaths, services
from .state.status import RUN
from .switch import base, calibrating, interruption, order, recovery, rollback, transaction, unfinished

REFUSALS = (
    lock.Held,
    order.BadOrder,
    releases.NotReady,
    unfinished.Unfinished,
    rollback.GoingDown,
    systemd.SystemdError,
    compiled.Unusable,
    OSError,  # the disk, before anything was touched: whatever follows that has its own word for it
)


# Programs of their own, with what the list of verbs says of them; they read their own arguments.
PROGRAMS = {
    "fetch": (fetch.main, "download and verify a checkpoint"),
    "build": (build.main, "install a vLLM into a venv of its own"),
    "rehearse": (rehearsal.main, "ask vLLM whether it accepts a release"),
    "front-wait": (front.main, None),
}
Verb = Callable[[argparse.Namespace], Optional[int]]  # returns the exit code; None is 0
Argument = Callable[[argparse.ArgumentParser], object]

PARSER = argparse.ArgumentParser(prog="on-host.pyz", description="pyinfra-vllm on this host")
PARSER.add_argument("--root", type=Path, default=DEFAULT_ROOT)
_verbs = PARSER.add_subparsers(required=True)


def main(argv: list[str] | None = None) -> int:
    os.umask(0o022)  # not the caller's: nothing that is made here may be open to others by chance
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in PROGRAMS:
        return PROGRAMS[arguments[0]][0](arguments[1:])
    options = PARSER.parse_args(arguments)
    try:
        return options.run(options) or 0
    except REFUSALS as error:
        print(error, file=sys.stderr)
        return 1


def _argument(*names: str, **how: Any) -> Argument:
    """An argument of a verb, as argparse's add_argument takes it."""
    return lambda parser: parser.add_argument(*names, **how)


def _verb(name: str, told: str, *arguments: Argument) -> Callable[[Verb], Verb]:
    """Adds the function to the command line under this name, with its line of help and its arguments."""
    parser = _verbs.add_parser(name, help=told)
    for argument in arguments:
        argument(parser)

    def added(run: Verb) -> Verb:
        parser.set_defaults(run=run)
        return run

    return added


@_verb(
    "stage",
    "lay a release down; the payload is removed",
    _argument("service"),
    _argument("payload", type=Path),
)
def _stage(options: argparse.Namespace) -> None:
    with lock.shared(lock.storage(RUN), "stage", f"a release of {options.service}"):
        print(releases.stage(ServicePaths(options.root, options.service), options.payload))


@_verb("switch", "carry out the order in a file", _argument("order", type=Path))
def _switch(options: argparse.Namespace) -> int:
    wanted = order.load(options.order)
    paths = ServicePaths(options.root, wanted.service)
    interruption.note_in(paths, status=1)  # systemd counts the unit as failed, and starts its recovery
    try:
        if wanted.purpose == order.CALIBRATION:
            return calibrating.EXIT_CODES[calibrating.calibrate(wanted, paths)]
        return transaction.EXIT_CODES[transaction.switch(wanted, paths)]
    finally:
        metrics.write_soon()


@_verb(
    "recover",
    "finish what an interrupted switch left; safe at any time",
    _argument("service", nargs="?"),
    _argument("--boot", action="store_true", help="before the services start"),
    _argument(
        "--wait",
        type=float,
        default=lock.LOOK_S,
        metavar="S",
        help="seconds to wait for whoever holds a lock",
    ),
    _argument(
        "--insist", action="store_true", help="try again, with growing pauses, until the service is right"
    ),
    _argument("--due", action="store_true", help="start the recovery unit of each service that needs it"),
)
def _recover(options: argparse.Namespace) -> int:
    if options.due:
        for name in recovery.start_due(options.root):
            print(f"{name}: its recovery was started")
        return 0
    if options.insist and options.service:
        paths = ServicePaths(options.root, options.service)
        interruption.note_in(paths, status=0)
        recovery.insist(paths, _say)
        metrics.write_soon()
        return 0
    there = [paths.name for paths in services(options.root)]
    if options.service and options.service not in there:
        _say(f"no service {options.service} below {options.root}; there is {', '.join(there) or 'none'}")
        return 1
    outcomes = recovery.recover(options.root, options.service, _say, boot=options.boot, wait_s=options.wait)
    for outcome in outcomes:
        print(outcome)
    failed = any(outcome.endswith(base.RESTORE_FAILED) for outcome in outcomes)
    return transaction.EXIT_CODES[base.RESTORE_FAILED] if failed else 0


@_verb("status", "what runs here, as JSON", _argument("service", nargs="*"))
def _status(options: argparse.Namespace) -> None:
    json.dump(observe.observe(options.root, options.service), sys.stdout)


@_verb(
    "metrics",
    "the same as Prometheus metrics",
    _argument("--to", type=Path, metavar="DIR", help=f"write them to {metrics.FILE} in this directory"),
)
def _metrics(options: argparse.Namespace) -> None:
    text = metrics.render(observe.observe(options.root, []), time.time())
    if options.to:
        metrics.write(options.to, text)
    else:
        sys.stdout.write(text)


@_verb(
    "follow",
    "what the newest transaction did since, as JSON",
    _argument("service"),
    _argument("--unit", required=True),
    _argument("--after-tx"),
    _argument("--entries", type=int, default=0),
    _argument("--lines", type=int, default=0),
)
def _follow(options: argparse.Namespace) -> None:
    seen = follow.Position(options.entries, options.lines)
    paths = ServicePaths(options.root, options.service)
    json.dump(follow.follow(paths, options.after_tx, seen, options.unit), sys.stdout)


@_verb(
    "reported",
    "note that an operator has seen a transaction's outcome",
    _argument("service"),
    _argument("tx"),
)
def _reported(options: argparse.Namespace) -> None:
    follow.acknowledge(ServicePaths(options.root, options.service), options.tx)


@_verb(
    "prune",
    "what nothing here needs, as JSON; standard input says what to keep",
    _argument("--delete", action="store_true", help="delete it, too"),
    _argument("--operator", default="prune", help="who wants it, for whoever finds the locks held"),
)
def _prune(options: argparse.Namespace) -> None:
    """Remove what the lists on standard input don't keep.

    It is one JSON object: {"releases": [service/id], "checkpoints": [org--name/commit], "runtimes": [name]}.
    """
    keep = prune.Keep(**{name: frozenset(values) for name, values in json.load(sys.stdin).items()})
    if options.delete:
        items = prune.prune(options.root, keep, options.operator)
    else:
        items = prune.prunable(options.root, keep)
    json.dump(
        [{"kind": item.kind, "path": str(item.path), "bytes": item.bytes} for item in items], sys.stdout
    )


@_verb("tighten", "make private what an earlier version let others read or hold")
def _tighten(options: argparse.Namespace) -> None:
    private.tighten(options.root)


@_verb(
    "libtorrent",
    "which Python here has libtorrent, as JSON",
    _argument("python", nargs="*", help="asked after the host's own python3"),
)
def _libtorrent(options: argparse.Namespace) -> None:
    found = swarm.python_with_libtorrent((shutil.which("python3") or sys.executable, *options.python))
    json.dump({"python": found}, sys.stdout)


@_verb(
    "compiled",
    "give or take the compile cache of a release, as JSON",
    _argument("do", choices=["wanted", "pack", "piece", "forget", "expect", "take"]),
    _argument("service"),
    _argument("release"),
    _argument("--number", type=int, default=0, help="of the piece"),
    _argument("--sha256", help="of the archive"),
    _argument("--donor", help="the host that it comes from"),
)
def _compiled(options: argparse.Namespace) -> None:
    paths, release = ServicePaths(options.root, options.service), options.release
    told: dict[str, object] = {}
    if options.do == "wanted":
        told = {"wanted": compiled.wanted(paths, release), "machine": compiled.machine()}
    elif options.do == "pack":
        told = {**compiled.pack(paths, release), "machine": compiled.machine()}
    elif options.do == "piece":
        told = {"base64": compiled.piece(paths, release, options.number)}
    elif options.do == "forget":
        compiled.forget(paths, release)
    elif options.do == "expect":
        told = {"folder": str(compiled.expect(paths, release))}
    else:
        told = {"files": compiled.take(paths, release, options.sha256, options.donor)}
    json.dump(told, sys.stdout)


@_verb("compile", "add byte code to this program, so that its calls are quicker")
def _compile(options: argparse.Namespace) -> None:
    bytecode.add(Path(sys.argv[0]).resolve())


for _name, (_, _told) in PROGRAMS.items():
    if _told:  # for the list alone: `main` starts them
        _verbs.add_parser(_name, help=_told, add_help=False).set_defaults(run=lambda options: 2)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
