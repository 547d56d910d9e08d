"""Commands on one host: with the privileges of the operation whose callback this is, or else of the inventory."""

from __future__ import annotations

import json
from typing import Any

from paramiko import SSHException
from pyinfra.api import Host, QuoteString, StringCommand
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS, pop_global_arguments

from pyinfra_vllm.errors import HostError

# What a command on a host may raise: its own failure, or the loss of the connection.
LOST = (HostError, OSError, EOFError, SSHException)

# On the disk, whole, before it has its name, and its name before we go on: a power cut leaves the old text or the new.
_WRITE = (
    'umask 077; cat > "$1.partial" && chmod "$2" "$1.partial" && sync "$1.partial" && mv -f "$1.partial" "$1"'
    ' && sync "${1%/*}"'
)


class Remote:
    """Every word is quoted; text travels on standard input, so that nothing secret rides on argv or in /tmp."""

    def __init__(self, host: Host) -> None:
        self.host = host
        given: dict[str, Any] = dict(
            host.current_op_global_arguments or pop_global_arguments(host.state, host, {})[0]
        )
        self.arguments = {key: given[key] for key in CONNECTOR_ARGUMENT_KEYS if key in given}

    def run(self, *words: str, stdin: str | None = None, timeout_s: int | None = None) -> str:
        """Standard output. Raises HostError with the command's own last words, TimeoutError after `timeout_s`, another of
        `LOST` where the connection is gone."""
        if not self.host.connected:  # pyinfra would send it through the client that could not connect
            raise ConnectionError("not connected")
        arguments = dict(self.arguments)
        if stdin is not None:
            arguments["_stdin"] = stdin
        if timeout_s is not None:
            arguments["_timeout"] = timeout_s
        command = StringCommand(*(QuoteString(word) for word in words))
        ok, output = self.host.run_shell_command(command, print_output=False, print_input=False, **arguments)
        if not ok:
            raise HostError(
                output.stderr.strip() or output.stdout.strip() or f"`{words[0]}` failed without a word"
            )
        return str(output.stdout)

    def json(self, *words: str, stdin: str | None = None, timeout_s: int | None = None) -> Any:
        text = self.run(*words, stdin=stdin, timeout_s=timeout_s)
        try:
            return json.loads(text)
        except ValueError as error:
            raise HostError(f"`{' '.join(words[:4])} ...` printed no JSON: {text[-300:]!r}") from error

    def write(self, path: str, text: str, mode: str = "600") -> None:
        """Replace the file in one step, durably; `path` is absolute and its folder must be there."""
        self.run("sh", "-c", _WRITE, "sh", path, mode, stdin=text)
