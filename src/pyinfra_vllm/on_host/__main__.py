"""The host's command line. The control machine calls it; a person may, too: each verb has --help."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from .server import front, metrics, systemd
from .server import release as releases
from .staging import build, bytecode, compiled, fetch, prune, rehearsal, swarm
from .state import follow, lock, observe, private
from .state.paths import DEFAULT_ROOT, ServicePaths
from .state.status import RUN
from .switch import calibrating, interruption, order, recovery, rollback, transaction

REFUSALS = (
    lock.Held,
    order.BadOrder,
    releases.NotReady,
    recovery.Unfinished,
    rollback.GoingDown,
    systemd.SystemdError,
    compiled.Unusable,
    OSError,  # the disk, before anything was touched: whatever follows that has its own word for it
)


def main(argv: list[str] | None = None) -> int:
    os.umask(0o022)  # not the caller's: nothing that is made here may be open to others by chance
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["fetch"]:
        return fetch.main(arguments[1:])
    if arguments[:1] == ["build"]:
        return build.main(arguments[1:])
    if arguments[:1] == ["rehearse"]:
        return rehearsal.main(arguments[1:])
    if arguments[:1] == ["front-wait"]:
        return front.main(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except REFUSALS as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="on-host.pyz", description="pyinfra-vllm on this host")
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT)
    verbs = parser.add_subparsers(required=True)

    stage = verbs.add_parser("stage", help="lay a release down; the payload is removed")
    stage.add_argument("service")
    stage.add_argument("payload", type=Path)
    stage.set_defaults(run=_stage)

    switch = verbs.add_parser("switch", help="carry out the order in a file")
    switch.add_argument("order", type=Path)
    switch.set_defaults(run=_switch)

    recover = verbs.add_parser("recover", help="finish what an interrupted switch left; safe at any time")
    recover.add_argument("service", nargs="?")
    recover.add_argument("--boot", action="store_true", help="before the services start")
    recover.add_argument(
        "--wait",
        type=float,
        default=lock.LOOK_S,
        metavar="S",
        help="seconds to wait for whoever holds a lock",
    )
    recover.add_argument(
        "--insist", action="store_true", help="try again, with growing pauses, until the service is right"
    )
    recover.add_argument(
        "--due", action="store_true", help="start the recovery unit of each service that needs it"
    )
    recover.set_defaults(run=_recover)

    status = verbs.add_parser("status", help="what runs here, as JSON")
    status.add_argument("service", nargs="*")
    status.set_defaults(run=_status)

    measuring = verbs.add_parser("metrics", help="the same as Prometheus metrics")
    measuring.add_argument(
        "--to", type=Path, metavar="DIR", help=f"write them to {metrics.FILE} in this directory"
    )
    measuring.set_defaults(run=_metrics)

    following = verbs.add_parser("follow", help="what the newest transaction did since, as JSON")
    following.add_argument("service")
    following.add_argument("--unit", required=True)
    following.add_argument("--after-tx")
    following.add_argument("--entries", type=int, default=0)
    following.add_argument("--lines", type=int, default=0)
    following.set_defaults(run=_follow)

    reported = verbs.add_parser("reported", help="note that an operator has seen a transaction's outcome")
    reported.add_argument("service")
    reported.add_argument("tx")
    reported.set_defaults(run=_reported)

    pruning = verbs.add_parser(
        "prune", help="what nothing here needs, as JSON; standard input says what to keep"
    )
    pruning.add_argument("--delete", action="store_true", help="delete it, too")
    pruning.add_argument("--operator", default="prune", help="who wants it, for whoever finds the locks held")
    pruning.set_defaults(run=_prune)

    tightening = verbs.add_parser(
        "tighten", help="make private what an earlier version let others read or hold"
    )
    tightening.set_defaults(run=_tighten)

    looking = verbs.add_parser("libtorrent", help="which Python here has libtorrent, as JSON")
    looking.add_argument("python", nargs="*", help="asked after the host's own python3")
    looking.set_defaults(run=_libtorrent)

    kernels = verbs.add_parser("compiled", help="give or take the compile cache of a release, as JSON")
    kernels.add_argument("do", choices=["wanted", "pack", "piece", "forget", "expect", "take"])
    kernels.add_argument("service")
    kernels.add_argument("release")
    kernels.add_argument("--number", type=int, default=0, help="of the piece")
    kernels.add_argument("--sha256", help="of the archive")
    kernels.add_argument("--donor", help="the host that it comes from")
    kernels.set_defaults(run=_compiled)

    compiling = verbs.add_parser(
        "compile", help="add byte code to this program, so that its calls are quicker"
    )
    compiling.set_defaults(run=_compile)

    fetching = verbs.add_parser("fetch", help="download and verify a checkpoint", add_help=False)
    fetching.set_defaults(run=lambda options: 2)

    building = verbs.add_parser("build", help="install a vLLM into a venv of its own", add_help=False)
    building.set_defaults(run=lambda options: 2)

    rehearsing = verbs.add_parser("rehearse", help="ask vLLM whether it accepts a release", add_help=False)
    rehearsing.set_defaults(run=lambda options: 2)
    return parser


def _stage(options: argparse.Namespace) -> int:
    with lock.shared(lock.storage(RUN), "stage", f"a release of {options.service}"):
        print(releases.stage(ServicePaths(options.root, options.service), options.payload))
    return 0


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
    outcomes = recovery.recover(options.root, options.service, _say, boot=options.boot, wait_s=options.wait)
    for outcome in outcomes:
        print(outcome)
    failed = any(outcome.endswith(transaction.RESTORE_FAILED) for outcome in outcomes)
    return transaction.EXIT_CODES[transaction.RESTORE_FAILED] if failed else 0


def _status(options: argparse.Namespace) -> int:
    json.dump(observe.observe(options.root, options.service), sys.stdout)
    return 0


def _metrics(options: argparse.Namespace) -> int:
    text = metrics.render(observe.observe(options.root, []), time.time())
    if options.to:
        metrics.write(options.to, text)
    else:
        sys.stdout.write(text)
    return 0


def _follow(options: argparse.Namespace) -> int:
    seen = follow.Position(options.entries, options.lines)
    paths = ServicePaths(options.root, options.service)
    json.dump(follow.follow(paths, options.after_tx, seen, options.unit), sys.stdout)
    return 0


def _reported(options: argparse.Namespace) -> int:
    follow.acknowledge(ServicePaths(options.root, options.service), options.tx)
    return 0


def _prune(options: argparse.Namespace) -> int:
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
    return 0


def _tighten(options: argparse.Namespace) -> int:
    private.tighten(options.root)
    return 0


def _libtorrent(options: argparse.Namespace) -> int:
    found = swarm.python_with_libtorrent((shutil.which("python3") or sys.executable, *options.python))
    json.dump({"python": found}, sys.stdout)
    return 0


def _compiled(options: argparse.Namespace) -> int:
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
    return 0


def _compile(options: argparse.Namespace) -> int:
    bytecode.add(Path(sys.argv[0]).resolve())
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
