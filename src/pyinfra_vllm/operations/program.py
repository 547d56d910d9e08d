"""Installs the requirements of staging and switching: our program, the recovery at boot, the users."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, Host, QuoteString, State, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from pyinfra_vllm.facts.service import Host as HostFact
from pyinfra_vllm.facts.told import asked
from pyinfra_vllm.on_host.inspect.host import Installation
from pyinfra_vllm.operations.util.archive import archive, program_name
from pyinfra_vllm.operations.util.refuse import alone, refuse
from pyinfra_vllm.operations.util.remote import LOST, Remote
from pyinfra_vllm.rendering import quoted
from pyinfra_vllm.rollout.progress import PROGRESS

OLDEST_PYTHON = (3, 9)
OLDEST_SYSTEMD = 244  # Restart=on-failure of a oneshot unit
CREDENTIALS = 247  # LoadCredential=, which hands the Hub's token to a download
UNITS = "/etc/systemd/system"
ENABLED = ("pyinfra-vllm-recover.service", "pyinfra-vllm-recover-due.timer")
# name -> text; described in docs/architecture.md
_UNITS = {
    "pyinfra-vllm-recover.service": """\
# Written by pyinfra-vllm: at boot, before the services start, each is led to the release that was proven.
[Unit]
Description=pyinfra-vllm: finish what a power cut interrupted
RequiresMountsFor={root}
StartLimitIntervalSec=0

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/env python3 -I {program} --root {root} recover --boot
Restart=on-failure
RestartSec=5

[Install]
WantedBy=multi-user.target
""",
    "pyinfra-vllm-recover@.service": """\
# Written by pyinfra-vllm: finishes what a switch of one service left, and tries until the service is right. Started by the
# end of the switch, at boot and by pyinfra-vllm-recover-due.timer; a shutdown stops it at once, and the next boot goes on.
[Unit]
Description=pyinfra-vllm: finish the switch of %i
RequiresMountsFor={root}
After=network-online.target pyinfra-vllm-recover.service
StartLimitIntervalSec=0

[Service]
Type=exec
Slice=system.slice
ExecStart=/usr/bin/env python3 -I {program} --root {root} recover --insist %i
Restart=on-failure
RestartSec=2
KillMode=mixed
TimeoutStopSec=15
OOMScoreAdjust=-500
""",  # noqa: E501
    "pyinfra-vllm-recover-due.service": """\
# Written by pyinfra-vllm: starts the recovery of each service whose switch has no end and no process.
[Unit]
Description=pyinfra-vllm: look for unfinished switches
RequiresMountsFor={root}

[Service]
Type=oneshot
ExecStart=/usr/bin/env python3 -I {program} --root {root} recover --due
{metrics}""",
    "pyinfra-vllm-recover-due.timer": """\
# Written by pyinfra-vllm: whatever ended a switch and its recovery, a host looks after itself within two minutes.
[Unit]
Description=pyinfra-vllm: look for unfinished switches

[Timer]
OnActiveSec=2min
OnUnitInactiveSec=2min
AccuracySec=1s

[Install]
WantedBy=timers.target
""",  # noqa: E501
}


# Where metrics are declared: comes also after a look that failed, and its own failure (`-`) is only logged.
_METRICS = "ExecStopPost=-/usr/bin/env python3 -I {program} --root {root} metrics --to {directory}\n"


def units(root: str, metrics: str | None = None) -> dict[str, str]:
    """The units of the recovery, name -> text.

    + metrics: the directory that the host's metrics are written to; None: nowhere
    """
    words = {"root": quoted(root), "program": quoted(f"{root}/bin/on-host.pyz")}
    words["metrics"] = _METRICS.format(**words, directory=quoted(metrics)) if metrics else ""
    return {name: text.format(**words) for name, text in _UNITS.items()}


@operation()
@alone
def installed(
    root: str, users: Sequence[str], metrics: str | None = None
) -> Generator[PyinfraCommand | str, None, None]:
    """
    Install the program that runs on the host, its recovery at boot, and the services' users.

    + root: where pyinfra-vllm keeps its files on the host
    + users: system users without a shell that the services run as
    + metrics: directory of node_exporter's textfile collector on the host; None: no metrics are written

    **Example:**

    .. code:: python

        program.installed(name="Prepare the host", root="/srv/pyinfra-vllm", users=["vllm"])
    """
    found, problem = question(host, root, users)
    if problem or not found:
        yield refuse(problem or "it told nothing")
        return

    missing = [user for user in users if not found.users[user]]
    program = program_name()
    texts = units(root, metrics)
    stale_unit = found.recovery_units != "".join(texts.values())

    if not missing and found.program == program and not stale_unit:
        host.noop(f"{root} has the program {program}, its recovery and the users {', '.join(users)}")
        return
    for user in missing:
        yield StringCommand(
            (
                "useradd --system --user-group --no-create-home --home-dir /nonexistent --shell"
                " /usr/sbin/nologin"
            ),
            QuoteString(user),
        )
    if found.program != program:
        yield FunctionCommand(_install, (root, program), {})
    if stale_unit:
        yield FunctionCommand(_lay_down, (texts,), {})
        yield "systemctl daemon-reload"
        yield StringCommand("systemctl enable --quiet", *ENABLED)
        yield "systemctl restart pyinfra-vllm-recover-due.timer"
        yield f"sync --file-system {UNITS}"


def question(host: Host, root: str, users: Sequence[str]) -> tuple[Installation | None, str | None]:
    """Return the host's installed state, and why nothing can be installed there (None where it can)."""
    found = asked(host, HostFact, root=root, users=tuple(users))
    problem = _problem(found) or _loose(found.loose if found else None)
    if problem or not found:
        return found, problem
    twin = PROGRESS.twin(host.name, found.machine)
    return found, twin and (
        f"it is the same machine as {twin}: an inventory names each machine once. Nothing of it was"
        " touched under this name; take one of the two out."
    )


def _problem(found: Installation | None) -> str | None:
    if not found:
        return "python3 is not there: install Debian's or Ubuntu's package `python3`. Nothing was changed."
    python, systemd = found.python, found.systemd
    if tuple(python[:2]) < OLDEST_PYTHON:
        version = ".".join(map(str, python))
        return (
            f"its python3 is {version}; 3.9 or newer is needed to watch over a switch. Nothing was changed."
        )
    if systemd is None:
        return (
            "it was not booted with systemd, which starts and supervises the services. Nothing was changed."
        )
    if systemd < OLDEST_SYSTEMD:
        return (
            f"its systemd is {systemd}; {OLDEST_SYSTEMD} or newer is needed to run a service. Nothing was"
            " changed."
        )
    if systemd < CREDENTIALS and _has_token():
        return (
            f"its systemd is {systemd}; {CREDENTIALS} or newer is needed to hand the Hub's token to a"
            " download unseen. Nothing was changed. Upgrade the host, or leave HF_TOKEN unset where all"
            " models are public."
        )
    return None


def _has_token() -> bool:
    from huggingface_hub import get_token  # 0.04 s, for few

    return get_token() is not None


def _loose(folder: str | None) -> str | None:
    if folder is None:
        return None
    return (
        f"others than root may write to {folder}, and so put anything in the place of what is below it:"
        f" `chown root:root {folder}; chmod go-w {folder}`, or declare another `root`. Nothing was changed."
    )


def _install(state: State, host: Host, root: str, program: str) -> bool:
    """Runs on the control machine when the operation is executed."""
    remote = Remote(host)
    path, link, partial = (f"{root}/bin/{name}" for name in (program, "on-host.pyz", ".on-host.partial"))
    try:
        remote.run(
            "mkdir", "-p", "-m", "755", *(f"{root}/{name}" for name in ("bin", "checkpoints", "runtimes"))
        )
        remote.write(path, archive(), "755")
        remote.run("python3", "-I", path, "--root", root, "tighten")
        remote.run("python3", "-I", path, "compile")
        remote.run("ln", "-sfn", program, partial)
        remote.run("mv", "-fT", partial, link)
        remote.run("sync", "--file-system", f"{root}/bin")  # a boot must find it whole
    except LOST as error:
        logger.error(f"{host.print_prefix}the program {program} was not installed: {error}")
        return False
    return True


def _lay_down(state: State, host: Host, texts: Mapping[str, str]) -> bool:
    """Runs on the control machine when the operation is executed."""
    try:
        for name, text in texts.items():
            Remote(host).write(f"{UNITS}/{name}", text, "644")
    except LOST as error:
        logger.error(f"{host.print_prefix}the units of the recovery were not written: {error}")
        return False
    return True
