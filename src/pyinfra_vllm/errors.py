"""One exception class for each cause that an operator can act on.

The message says what happened, what was left untouched and what to do. The command line prints it without a
traceback and exits with the class's code (DESIGN: 1 failed, 2 nothing was touched, 3 inconclusive, 4
deferred).
"""

from .printable import printable


class RolloutError(Exception):
    """An expected failure: its message is for the operator."""

    exit_code = 1


class DeclarationError(RolloutError):
    """The declaration is invalid: names the file, the key, the value and the fix.

    No host was touched.
    """

    exit_code = 2


class LockError(RolloutError):
    """`checkpoints.lock.yaml` has no entry for a declared model, or one for something else.

    No host was touched.
    """

    exit_code = 2


class CheckpointRefused(RolloutError):
    """A repository that must not be served: pickled weights only, or code that needs `trust_remote_code`."""

    exit_code = 2


class HubError(RolloutError):
    """The Hub could not be reached, or what it answered can't be used."""


class HostError(RolloutError):
    """Something on one host stops that host alone."""


def one_line(error: Exception | str) -> str:
    """The text of another program or a file on one line, to be part of a message.

    Short, and safe on any terminal: control characters are written out, and the text can always be encoded.
    """
    return printable(" ".join(str(error).split())[:300])
