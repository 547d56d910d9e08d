"""The `pyinfra-vllm` command: finds the command's module, runs it, and makes exit codes of failures.

Results go to stdout, messages to stderr. Each command lives in `commands/` and is imported only when it is
used, so that `resolve` does not wait for what `lock` needs.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import os
import select
import sys
import traceback
from collections.abc import Sequence

import click

from .errors import RolloutError, one_line
from .printable import printable_lines

# Every command, in the order of a rollout, with the line that `--help` shows.
COMMANDS = {
    "init": "Write a small project to begin with.",
    "lock": "Pin what each declared model means in checkpoints.lock.yaml, or check it.",
    "validate": "Check the declaration without asking a host; all problems at once.",
    "resolve": "Show the vLLM flags for a model on a GPU, each with its reason.",
    "tune": "Show what is worth trying on each service's card, and when.",
    "windows": "Say whether a switch may begin now, why, and when next.",
    "plan": "Show what a rollout would do, host by host, refusals included.",
    "bench": "Measure a server with the gate's probe and write a record.",
    "compare": "Judge one record against another: pass, fail or inconclusive.",
    "calibrate": "Find how noisy an unchanged service is, across its restarts.",
    "trial": "Measure the declared release on the canary, and go back: should it be rolled out?",
    "status": "Show what each host runs, and what differs from what is declared.",
    "doctor": "Find out whether each host could restart, and go back, right now.",
    "watch": "Follow a rollout wave by wave and host by host.",
    "history": "Show who switched what, when, and what came of it.",
    "logs": "Show the journal of one host's services, the root cause of a failed start first.",
    "report": "Write an HTML page about the fleet, its switches and their evidence.",
    "prune": "Show what nothing on the hosts needs any more, and delete it.",
    "schedule": "Print or install the timer for unattended rollouts.",
}
INTERRUPTED = 130
NOBODY_READS = 141  # as a shell shows a program that SIGPIPE ended; click's own 1 would be a verdict
# A mistake of this program is none of the outcomes that 0 to 4 stand for: 1 would be taken for a verdict
# (sysexits.h: EX_SOFTWARE).
UNEXPECTED = 70
TRACEBACK_VARIABLE = "PYINFRA_VLLM_TRACEBACK"


class _Commands(click.Group):
    """Knows every command's name; imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__package__}.commands.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            raise click.UsageError(_meant(args), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _meant(words: Sequence[str]) -> str:
    """Return the nearest command line for words that begin with no command."""
    from .config.problems import unknown  # what a command that is known needs not

    swapped = next((word for word in words[1:] if word in COMMANDS), None)
    if swapped:
        rest = [word for word in words if word != swapped]
        return f"the command comes first: `pyinfra-vllm {' '.join([swapped, *rest])}`"
    return f"{words[0]}: {unknown('command', words[0], COMMANDS)}"


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Exit codes: 0 done, 1 failed, 2 invalid and nothing touched, 3 inconclusive, 4 deferred by a"
        " window, 70 a mistake of this program."
    ),
)
@click.version_option(importlib.metadata.version("pyinfra-vllm"), prog_name="pyinfra-vllm")
def cli() -> None:
    """Rollouts of AWQ models onto fleets of vLLM hosts: what stands beside `pyinfra INVENTORY deploy.py`."""


def _unexpected(error: Exception) -> str:
    """An unexpected error on one line; with its traceback where that is asked for."""
    if os.environ.get(TRACEBACK_VARIABLE):
        return "".join(traceback.format_exception(error)).rstrip()
    return (
        f"Internal error (bug in pyinfra-vllm): {type(error).__name__}: {one_line(error)}. "
        f"Set {TRACEBACK_VARIABLE}=1 and run it again to see where, and please report that."
    )


def _nobody_reads(ended: SystemExit) -> bool:
    """Whether standard output was a pipe whose reader has gone: click and rich exit with 1 then, after rich
    has put /dev/null in its place.
    """
    poll = select.poll()
    poll.register(1, 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    return gone or isinstance(ended.__context__, BrokenPipeError)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its code; an unexpected exception never has the code of an outcome."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr has it: a name that can't be shown ends nothing
        sys.stdout.reconfigure(errors="backslashreplace")
    color = False if os.environ.get("NO_COLOR") else None  # rich knows that variable, click does not
    try:
        result = cli.main(args=arguments, prog_name="pyinfra-vllm", standalone_mode=False, color=color)
    except RolloutError as error:
        click.echo(printable_lines(f"Error: {error}"), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)  # click's own complaints are all about how the command was called
    except SystemExit as ended:
        sys.exit(NOBODY_READS if _nobody_reads(ended) else ended.code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        click.echo(_unexpected(error), err=True)
        sys.exit(UNEXPECTED)
    sys.exit(result if isinstance(result, int) else 0)
