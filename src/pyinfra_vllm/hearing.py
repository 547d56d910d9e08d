"""Bounds what a host may say through pyinfra, and makes printable what pyinfra logs of it.

pyinfra reads a command's output to its end into memory, and decodes it strictly: a host that never stops
would take all memory, and bytes that are no text end in a traceback. Both would be the end of a run for every
host.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from pyinfra.api import output
from pyinfra.connectors import ssh
from pyinfra.connectors.util import CommandOutput, read_output_buffers

from .printable import printable_but_coloured

MOST_BYTES = 128 * 2**20  # of one command: a report asks for up to 16 MiB of evidence a service
MOST_LINES = 200_000
EXIT_S = 60.0  # between a command's last byte and its exit status
CHUNK = 1 << 16


class TooMuch(OSError):
    """A host's answer is longer than allowed. pyinfra takes an OSError for a failure of that host."""


class Heard:
    """The output of one command so far, from both streams."""

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close
        self._bytes = self._lines = 0
        self.problem: OSError | None = None

    def lines(self, receive: Callable[[int], bytes]) -> Iterator[str]:
        """The lines of one stream, until it ends or was too much. Bytes that are no UTF-8 are replaced."""
        begun: list[bytes] = []
        while chunk := self._received(receive):
            *whole, rest = chunk.split(b"\n")
            for line in whole:
                yield b"".join([*begun, line]).decode("utf-8", "replace") + "\n"
                begun = []
            begun.append(rest)
        if last := b"".join(begun):
            yield last.decode("utf-8", "replace")

    def _received(self, receive: Callable[[int], bytes]) -> bytes:
        try:
            chunk = receive(CHUNK)
        except OSError as error:
            self.problem = error
            return b""
        self._bytes += len(chunk)
        self._lines += chunk.count(b"\n")
        if self._bytes > MOST_BYTES or self._lines > MOST_LINES:
            self.problem = self.problem or TooMuch(
                f"its answer has more than {MOST_BYTES >> 20} MiB or {MOST_LINES} lines, and was given up"
            )
            self._close()
            return b""
        return chunk


def _read_bounded(
    stdout_buffer: Any, stderr_buffer: Any, timeout: int | None, print_output: bool, print_prefix: str
) -> CommandOutput:
    """Replaces pyinfra's own, whose arguments these are: the buffers are paramiko's, on one channel."""
    channel = stdout_buffer.channel
    heard = Heard(channel.close)
    try:
        found = read_output_buffers(
            heard.lines(channel.recv), heard.lines(channel.recv_stderr), timeout, print_output, print_prefix
        )
    except TimeoutError:
        channel.close()  # else the command goes on, and its output with it
        raise
    if heard.problem:
        raise heard.problem
    if not channel.status_event.wait(EXIT_S):
        channel.close()
        raise TimeoutError(f"no exit status within {EXIT_S:.0f} s of its last word")
    return found


class _Printable(logging.Filter):
    """Cleans a record of pyinfra's log before any handler sees it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, str):
            message = record.msg % record.args if record.args else record.msg
            record.msg, record.args = printable_but_coloured(message), ()
        return True


class _Echo:
    """pyinfra's echo, which prints a host's output as it comes where -vv asks for it."""

    def __init__(self, echo: Callable[..., None]) -> None:
        self._echo = echo

    def __call__(self, message: Any = None, **how: Any) -> None:
        self._echo(printable_but_coloured(message) if isinstance(message, str) else message, **how)


def guard() -> None:
    """From now on no host can say too much, and whatever pyinfra shows of it is printable.

    A second call changes nothing.
    """
    ssh.read_output_buffers = _read_bounded
    # Python prints the errors of a logger without a handler: tracebacks, with what the host said as it was.
    # Each of them reaches us as an exception, too.
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    logger = logging.getLogger("pyinfra")
    if not any(isinstance(item, _Printable) for item in logger.filters):
        logger.addFilter(_Printable())
    if output.is_output_active() and not isinstance(output._echo, _Echo):
        output.set_echo(_Echo(output._echo))
