"""Draws what a terminal showed, for the README: docs/run.svg.

    script -qec "make demo" demo.typescript
    sed -n '/=== Release C/,/=== Release B declared/p' demo.typescript |
        python scripts/picture.py '--> Starting operation: Wave 1' 'solo  tiny: bring' > docs/run.svg

The first word begins the first line of the picture, the second the line after its last.
"""

from __future__ import annotations

import io
import re
import sys

from rich.console import Console
from rich.text import Text

COLUMNS = 120
_CURSOR = re.compile(r"\x1b\[[0-9;?]*[A-LN-Za-ln-z]")  # every escape sequence but colours
_FETCHED = re.compile(r"@font-face \{.*?\}", re.S)  # fonts from elsewhere: a page loads nothing


def lines(typescript: str, first: str, last: str) -> list[str]:
    """The lines between the two, as they stood at the end: a spinner's earlier states are gone.

    Raises ValueError where the first is not there.
    """
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in _CURSOR.sub("", typescript).split("\n")]
    plain = [Text.from_ansi(line).plain for line in shown]
    begin = next((at for at, line in enumerate(plain) if line.startswith(first)), None)
    if begin is None:
        raise ValueError(f"no line begins with {first!r}")
    end = next((at for at, line in enumerate(plain) if at > begin and line.startswith(last)), len(plain))
    return shown[begin:end]


def main() -> int:
    """Reads a typescript on standard input, writes an SVG to standard output."""
    typescript = sys.stdin.buffer.read().decode(errors="replace")  # each \r as it is
    screen = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    screen.print(Text.from_ansi("\n".join(lines(typescript, sys.argv[1], sys.argv[2])).rstrip()))
    print(_FETCHED.sub("", screen.export_svg(title="pyinfra inventory/prod.py deploy.py")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
