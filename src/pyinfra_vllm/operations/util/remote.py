"""Commands on one host, with the privileges of the operation whose callback this is, or the inventory's."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from paramiko import SSHException
from pyinfra.api import Host, QuoteString, StringCommand
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS, pop_global_arguments
from pyinfra.connectors import util

from pyinfra_vllm import answers
from pyinfra_vllm.answers import T
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.hearing import TooMuch
from pyinfra_vllm.printable import printable

# Errors of a command on a host: its own failure, or the loss of the connection.
LOST = (HostError, OSError, EOFError, SSHException)

_PIECE = 3 << 18  # bytes of a line in base64; threes of bytes, so that only the last line is padded
LAST_WORDS = 1500  # characters of a failed command's last output

# The sum first, then the content in base64. On the disk, whole and as it was sent, before it has its name,
# and its name before we go on: a power cut leaves the old content or the new.
_WRITE = """
umask 077
IFS= read -r sum
rm -f -- "$1.partial"
base64 -d > "$1.partial" && found=$(sha256sum < "$1.partial") || exit 1
if [ "$found" != "$sum  -" ]; then
    rm -f -- "$1.partial"
    echo "$1 did not arrive as it was sent; it was left as it was" >&2
    exit 1
fi
chmod "$2" "$1.partial" && sync "$1.partial" && mv -fT -- "$1.partial" "$1" && sync "${1%/*}"
"""


def never_ask() -> None:
    """From now on a sudo that asks for a password refuses, instead of waiting at an unseen prompt."""

    def refuse(prompt: str = "", stream: TextIO | None = None) -> str:
        raise HostError("sudo asks for a password here")

    util.getpass = refuse


class Remote:
    """Every word is quoted; text travels on standard input, so no secret is on argv or in /tmp."""

    def __init__(self, host: Host) -> None:
        self.host = host
        given: Mapping[str, Any] = (
            host.current_op_global_arguments or pop_global_arguments(host.state, host, {})[0]
        )
        self.arguments = {key: given[key] for key in CONNECTOR_ARGUMENT_KEYS if key in given}

    def run(self, *words: str, stdin: str | Sequence[str] | None = None, timeout_s: int | None = None) -> str:
        """Standard output; standard input is a text or its lines. Raises HostError with its own last
        words, TimeoutError after `timeout_s`, another of `LOST` where the connection is gone.
        """
        if not self.host.connected:  # pyinfra would send it through the client that could not connect
            raise ConnectionError("not connected")
        arguments = dict(self.arguments)
        if stdin is not None:
            arguments["_stdin"] = stdin
        if timeout_s is not None:
            arguments["_timeout"] = timeout_s
        command = StringCommand(*(QuoteString(word) for word in words))
        try:
            ok, output = self.host.run_shell_command(
                command, print_output=False, print_input=False, **arguments
            )
        except TooMuch as error:
            raise HostError(f"`{words[0]}`: {error}") from error
        if not ok:
            said = output.stderr.strip() or output.stdout.strip()
            raise HostError(printable(said[-LAST_WORDS:]) or f"`{words[0]}` failed without a word")
        return str(output.stdout)

    def json(self, kind: type[T], *words: str, stdin: str | None = None, timeout_s: int | None = None) -> T:
        """The JSON that a command prints. Raises HostError where it is none, or not of that kind."""
        return answers.read(self.run(*words, stdin=stdin, timeout_s=timeout_s), kind)

    def write(self, path: str, content: str | bytes | tuple[str, ...], mode: str = "600") -> None:
        """Replace the file in one step, durably; `path` is absolute, in a folder that only root may write to.

        The only way in which a file comes to a host. pyinfra's own uploads go through a name in /tmp that
        anybody can compute and take first. The sum travels on standard input, too: on argv it would tell
        whether a guess at a secret is right.

        content: or its `as_lines`, where many hosts get the same
        """
        sent = content if isinstance(content, tuple) else "".join(f"{line}\n" for line in as_lines(content))
        self.run("sh", "-c", _WRITE, "sh", path, mode, stdin=sent)


def program(root: str) -> tuple[str, ...]:
    """The words that run the host's own program."""
    return ("python3", "-I", f"{root}/bin/on-host.pyz", "--root", root)


def as_lines(content: str | bytes) -> tuple[str, ...]:
    """Its sha256, then the content in base64, in lines of 1 MiB."""
    data = content.encode() if isinstance(content, str) else content
    pieces = (data[at : at + _PIECE] for at in range(0, len(data), _PIECE))
    return (hashlib.sha256(data).hexdigest(), *(base64.b64encode(piece).decode() for piece in pieces))
