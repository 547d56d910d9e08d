"""`pyinfra-vllm resolve`: the flags for a model on a GPU, each with its reason.

Asks no host and no network.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from pyinfra_vllm import trades, tuning
from pyinfra_vllm.catalog import shapes
from pyinfra_vllm.catalog.gpus import GIB
from pyinfra_vllm.catalog.shapes import Shape
from pyinfra_vllm.checkpoint import LOCK_FILE, Lock
from pyinfra_vllm.commands.gate_file import criteria_of
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.fit import Fit
from pyinfra_vllm.trades import Trade
from pyinfra_vllm.tuning import Resolution

WIDTH_WITHOUT_TERMINAL = 120


@click.command()
@click.option(
    "--model",
    required=True,
    help='A model of the catalog, such as "Qwen/Qwen3-32B-AWQ", or of ./checkpoints.lock.yaml.',
)
@click.option(
    "--gpu", required=True, help='As nvidia-smi prints it, such as "NVIDIA GeForce RTX 4090", or "cpu".'
)
@click.option("--runtime", required=True, help='A vLLM version, such as "0.33.0".')
@click.option(
    "--gpu-count",
    type=click.IntRange(min=1, max=tuning.MOST_GPUS),
    default=1,
    show_default=True,
    help="GPUs of the service.",
)
@click.option("--objective", type=click.Choice(tuning.OBJECTIVES), default="balanced", show_default=True)
@click.option("--max-model-len", type=click.IntRange(min=1), help="Tokens. Left out: the model's own.")
@click.option(
    "--variant", "variants", multiple=True, help="A variant: NAME, NAME=VALUE or a JSON map. May be repeated."
)
@click.option(
    "--flag", "flags", multiple=True, help="A flag of your own: NAME=VALUE (JSON or text). May be repeated."
)
@click.option(
    "--gate",
    "gate_file",
    type=click.Path(path_type=Path),
    help="The gate's settings, YAML or JSON: whether they let a known trade pass. Left out: the defaults.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def resolve(
    model: str,
    gpu: str,
    runtime: str,
    gpu_count: int,
    objective: str,
    max_model_len: int | None,
    variants: tuple[str, ...],
    flags: tuple[str, ...],
    gate_file: Path | None,
    as_json: bool,
) -> int:
    """Show the vLLM flags for a model on a GPU, each with its reason, and what memory they leave.

    Exits with 1 when it can't work (the reasons are under "errors"), 2 when the question can't be understood.
    """
    criteria = criteria_of(gate_file)
    resolution = tuning.resolve(
        model=_model(model),
        gpu=gpu,
        runtime_version=runtime,
        gpu_count=gpu_count,
        objective=objective,
        max_model_len=max_model_len,
        variants=[_variant(text) for text in variants],
        flags=dict(_flag(text) for text in flags),
    )
    known = trades.towards(resolution.trades, resolution.kernel, criteria)
    if as_json:
        answer = resolution.as_dict()
        answer["warnings"] += [f"known trade {trade}" for trade in known if not trade.passes]
        click.echo(json.dumps(answer, indent=2))
    else:
        _show(resolution, known)
    if not resolution.understood:
        return DeclarationError.exit_code
    return 1 if resolution.errors else 0


def _model(name: str) -> str | Shape:
    """The catalog's model by its name, or the shape of one that `pyinfra-vllm lock` has written down here."""
    if shapes.find(name) is not None or not LOCK_FILE.exists():
        return name
    repo, _, revision = name.partition("@")
    found = [
        entry for entry in Lock.load().entries if entry.repo == repo and revision in ("", entry.revision)
    ]
    if len(found) > 1:
        told = " or ".join(entry.name for entry in found)
        raise DeclarationError(f"model {name!r} is in {LOCK_FILE} more than once: say {told}")
    return shapes.from_config(name, found[0].config, found[0].weights_bytes) if found else name


def _variant(text: str) -> str | dict[str, Any]:
    if text.startswith("{"):
        return _json_map(text)
    name, equals, value = text.partition("=")
    if not name.strip():
        raise DeclarationError(f"--variant {_shown(text)}: write NAME, NAME=VALUE or a JSON map")
    return {name: _value(value, f"--variant {name}")} if equals else name


def _json_map(text: str) -> dict[str, Any]:
    try:
        return dict(_json(text, "--variant"))
    except ValueError as error:
        raise DeclarationError(f"--variant {_shown(text)}: not JSON ({error})") from None


def _flag(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip("- "):
        raise DeclarationError(
            f"--flag {_shown(text)}: write NAME=VALUE, such as enforce-eager=true (null takes the flag out)"
        )
    return name, _value(value, f"--flag {name}")


def _value(text: str, where: str) -> Any:
    """JSON where it is JSON (numbers, true, null, maps), else the text itself."""
    try:
        return _json(text, where)
    except ValueError:
        return text


def _json(text: str, where: str) -> Any:
    """Raises ValueError for text that isn't JSON, and DeclarationError for nesting that no parser takes."""
    try:
        return json.loads(text)
    except RecursionError:
        deepest = f"allowed are {tuning.DEEPEST} levels"
        raise DeclarationError(f"{where}: {_shown(text)} is nested too deep; {deepest}") from None


def _shown(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _show(resolution: Resolution, known: list[Trade]) -> None:
    from rich.console import Console  # a tenth of a second that --json does not need
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
    asked = resolution.asked
    count = f"{asked['gpu_count']} x " if asked["gpu_count"] > 1 else ""
    title = f"{asked['model']} on {count}{asked['gpu']}, vLLM {asked['vllm_text']}, {asked['objective']}"
    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("Flag or variable", overflow="fold")
    table.add_column("Reason")
    table.add_column("Source")
    for flag in resolution.flags:
        row = (" ".join(tuning.tokens(flag.flag, flag.value)), flag.reason, flag.source)
        table.add_row(*(Text(cell) for cell in row))
    for setting in resolution.settings:
        row = (f"{setting.flag}={setting.value}", setting.reason, setting.source)
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    for line in _facts(resolution):
        console.print(line, markup=False, highlight=False)
    for trade in known:
        console.print(f"Known trade {trade}", markup=False, highlight=False)
    for text in resolution.warnings:
        console.print(f"Warning: {text}", style="yellow", markup=False, highlight=False)
    for text in resolution.errors:
        console.print(f"Error: {text}", style="red", markup=False, highlight=False)


def _facts(resolution: Resolution) -> list[str]:
    without = "none that is fast" if resolution.asked["quantized"] else "none (not quantized)"
    kernel = " and ".join(dict.fromkeys(resolution.kernel)) or without
    return [*_memory(resolution.fit), f"Kernel expected: {kernel}"]


def _memory(fit: Fit | None) -> list[str]:
    if fit is None:
        return []
    if not fit.requested_bytes:
        return [
            (
                f"KV cache: {fit.kv_tokens:,} tokens, {fit.max_concurrency:g} requests of"
                f" {fit.max_model_len:,} tokens"
            )
        ]
    return [
        f"Memory of each GPU: {fit.requested_bytes / GIB:.1f} GiB taken = {fit.weights_bytes / GIB:.1f}"
        f" weights + {fit.overhead_bytes / GIB:.1f} context, peak and graphs (estimated) + KV cache",
        f"KV cache: {fit.kv_tokens:,} tokens of {fit.kv_bytes_per_token:,} bytes, "
        f"{fit.max_concurrency:g} requests of {fit.max_model_len:,} tokens at a time"
        f" ({fit.request_bytes / GIB:.2f} GiB each)",
        f"Fits: {'yes' if fit.fits else 'no'}",
    ]
