"""Asks the runtime's own vLLM about a command line: the child of `on_host/staging/rehearsal.py`.

It is read from standard input and gets the words after `vllm` as arguments (`serve CHECKPOINT --flag value`).
It prints one line of JSON: `asked` (false with `reason` where this vLLM can't be asked), `error` (why vLLM
refuses; null where it accepts), `derived` (settings as vLLM worked them out), `warnings` (of vLLM's log),
`seconds` and `memory_bytes` (the largest resident set). No weights are loaded and no GPU memory is taken.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import resource
import sys
import time
from typing import Any

MESSAGE, WARNINGS = 600, 20  # characters of a message, messages kept
ADVERTISED = "For further information visit"  # pydantic's, below each of its errors


class CannotAsk(Exception):
    """This vLLM has no such module or function: another version than those that this program knows."""


def keep_warnings() -> list[str]:
    """Return a list that vLLM's warnings and errors are added to.

    Not by a handler: vLLM replaces those when it is imported.
    """
    found: list[str] = []
    make = logging.getLogRecordFactory()

    def make_and_keep(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = make(*arguments, **named)
        if record.levelno >= logging.WARNING and record.name.startswith("vllm") and len(found) < WARNINGS:
            found.append(one_line(record.getMessage()))
        return record

    logging.setLogRecordFactory(make_and_keep)
    return found


def rehearse(words: list[str]) -> dict[str, Any]:
    """Ask this vLLM about one command line. Whatever it raises is its refusal."""
    warnings = keep_warnings()
    answer: dict[str, Any] = {"asked": True, "reason": "", "error": None, "derived": {}}
    try:
        arguments = parsed(words)
        parsers_exist(arguments)
        config = configuration(arguments)
        tokenizer(config.model_config)
        answer["derived"] = derived(config)
    except CannotAsk as error:
        answer.update(asked=False, reason=one_line(str(error)))
    except (Exception, SystemExit) as error:
        answer["error"] = refusal(error)
    return {**answer, "warnings": warnings}


def parsed(words: list[str]) -> Any:
    """The command line as `vllm serve` itself reads it."""
    try:
        from vllm.entrypoints.cli.serve import ServeSubcommand
    except ImportError as error:
        raise missing(error) from error
    parser = parser_class()(prog="vllm")
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            arguments = parser.parse_args(words)
    except SystemExit as error:
        text = said.getvalue().strip()
        lines = (text.partition("error: ")[2] or text or str(error)).splitlines()
        raise ValueError("\n".join(line for line in lines if ADVERTISED not in line)) from error
    command.validate(arguments)
    if getattr(arguments, "model_tag", None) is not None:
        arguments.model = arguments.model_tag
    return arguments


def parser_class() -> Any:
    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:  # before 0.12
        try:
            from vllm.utils import FlexibleArgumentParser
        except ImportError as error:
            raise missing(error) from error
    return FlexibleArgumentParser


def parsers_exist(arguments: Any) -> None:
    """The names of tool-call and reasoning parsers, which the server checks before it starts its engine."""
    try:
        from vllm.entrypoints.openai.api_server import validate_api_server_args
    except ImportError:
        return  # a version that checks them elsewhere: its own start tells
    validate_api_server_args(arguments)


def configuration(arguments: Any) -> Any:
    """Build the engine's configuration from the real checkpoint, as the server does at its start."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    engine = AsyncEngineArgs.from_cli_args(arguments)
    return engine.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


def tokenizer(model_config: Any) -> None:
    """Load it as the server does; a missing or broken one ends a start after the weights were loaded."""
    if model_config.skip_tokenizer_init:
        return
    try:
        from vllm.tokenizers import cached_tokenizer_from_config
    except ImportError:  # before 0.13
        try:
            from vllm.transformers_utils.tokenizer import (
                cached_tokenizer_from_config,
            )
        except ImportError:
            return  # the configuration is accepted; of the tokenizer the server's own start tells
    cached_tokenizer_from_config(model_config)


def derived(config: Any) -> dict[str, Any]:
    """Return the settings that decide memory and kernels, by names of our own.

    Those that this version lacks are left out.
    """
    places: dict[str, tuple[str, str]] = {
        "dtype": ("model_config", "dtype"),
        "quantization": ("model_config", "quantization"),
        "max_model_len": ("model_config", "max_model_len"),
        "architecture": ("model_config", "architecture"),
        "kv_cache_dtype": ("cache_config", "cache_dtype"),
        "block_size": ("cache_config", "block_size"),
        "max_num_seqs": ("scheduler_config", "max_num_seqs"),
        "max_num_batched_tokens": ("scheduler_config", "max_num_batched_tokens"),
        "tensor_parallel_size": ("parallel_config", "tensor_parallel_size"),
        "pipeline_parallel_size": ("parallel_config", "pipeline_parallel_size"),
        "data_parallel_size": ("parallel_config", "data_parallel_size"),
    }
    values = {}
    for name, (part, attribute) in places.items():
        value = getattr(getattr(config, part, None), attribute, None)
        if value is not None:
            values[name] = value if isinstance(value, (int, float)) else one_line(str(value))
    return values


def missing(error: ImportError) -> Exception:
    """Tell a module that this vLLM does not have from one that is there and broken: that is a refusal."""
    if (error.name or "").partition(".")[0] == "vllm":
        return CannotAsk(f"this vLLM can't be asked: {error}")
    return error


def refusal(error: BaseException) -> str:
    """Return the reason of vLLM in one line; pydantic's errors without their frame."""
    problems = getattr(error, "errors", None)
    if callable(problems):
        with contextlib.suppress(Exception):
            told = [
                ": ".join([*map(str, problem["loc"]), str(problem["msg"]).removeprefix("Value error, ")])
                for problem in problems()
            ]
            return one_line("; ".join(dict.fromkeys(told)))
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    kind = "" if type(error) in (ValueError, KeyError) else f"{type(error).__name__}: "
    return one_line(f"{kind}{said}")


def one_line(text: str) -> str:
    return " ".join(text.split())[:MESSAGE]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # vLLM logs to standard output
    began = time.monotonic()
    answer = rehearse(sys.argv[1:])
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(
        json.dumps({**answer, "seconds": round(time.monotonic() - began, 1), "memory_bytes": peak * 1024}),
        file=answers,
        flush=True,
    )
    os._exit(0)  # not whatever its libraries do at their end


if __name__ == "__main__":
    main()
