"""`pyinfra-vllm resolve`: the flags for a model on a GPU, each with its reason.

Asks no host and no network.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pyinfra_vllm import trades
from pyinfra_vllm.catalog import gpus, shapes
from pyinfra_vllm.catalog.gpus import GIB, Gpu
from pyinfra_vllm.catalog.shapes import Shape
from pyinfra_vllm.checkpoint import LOCK_FILE, Checkpoint, Lock
from pyinfra_vllm.commands.files import criteria_of
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.fit import Fit
from pyinfra_vllm.trades import Trade
from pyinfra_vllm.tuning import standby
from pyinfra_vllm.tuning.request import MOST_GPUS, OBJECTIVES, Request, cataloged
from pyinfra_vllm.tuning.resolution import Resolution, tokens
from pyinfra_vllm.tuning.resolver import resolve as resolved
from pyinfra_vllm.tuning.values import DEEPEST

if TYPE_CHECKING:
    from pyinfra_vllm.config.profiles import MeasuredProfile

WIDTH_WITHOUT_TERMINAL = 120
VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")

T = TypeVar("T")


@click.command()
@click.option(
    "--model",
    required=True,
    help='A model of ./checkpoints.lock.yaml or else of the catalog, such as "Qwen/Qwen3-32B-AWQ".',
)
@click.option(
    "--gpu",
    help='As nvidia-smi prints it, such as "NVIDIA GeForce RTX 4090", or "cpu"; also one of ./cards.yaml.',
)
@click.option(
    "--gpu-memory", help='Of a card that is in neither, as nvidia-smi prints it: "48GiB" or "49140MiB".'
)
@click.option("--compute-capability", help='Of such a card: "8.9".')
@click.option("--runtime", required=True, help='A vLLM version, such as "0.33.0".')
@click.option(
    "--gpu-count",
    type=click.IntRange(min=1, max=MOST_GPUS),
    default=1,
    show_default=True,
    help="GPUs of the service.",
)
@click.option("--objective", type=click.Choice(OBJECTIVES), default="balanced", show_default=True)
@click.option("--max-model-len", type=click.IntRange(min=1), help="Tokens. Left out: the model's own.")
@click.option(
    "--variant", "variants", multiple=True, help="A variant: NAME, NAME=VALUE or a JSON map. May be repeated."
)
@click.option(
    "--flag", "flags", multiple=True, help="A flag of your own: NAME=VALUE (JSON or text). May be repeated."
)
@click.option(
    "--env",
    "variables",
    multiple=True,
    help="A variable of the service's environment: NAME=VALUE. May be repeated.",
)
@click.option(
    "--gate",
    "gate_file",
    type=click.Path(path_type=Path),
    help="The gate's settings, YAML or JSON: whether they let a known trade pass. Left out: the defaults.",
)
@click.option("--standby", "wants_standby", is_flag=True, help="Also say whether `standby: true` can be had.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def resolve(
    model: str,
    gpu: str | None,
    gpu_memory: str | None,
    compute_capability: str | None,
    runtime: str,
    gpu_count: int,
    objective: str,
    max_model_len: int | None,
    variants: tuple[str, ...],
    flags: tuple[str, ...],
    variables: tuple[str, ...],
    gate_file: Path | None,
    wants_standby: bool,
    as_json: bool,
) -> int:
    """Show the vLLM flags for a model on a GPU, each with its reason, and what memory they leave.

    Exits with 1 when it can't work (the reasons are under "errors"), 2 when the question can't be understood.
    """
    criteria = criteria_of(gate_file)
    locked = _locked(model)  # wins over the catalog: it is what will be served
    request = Request(
        shape=_shape(locked) if locked else cataloged(model),
        card=_card(gpu, gpu_memory, compute_capability),
        version=runtime,
        gpu_count=gpu_count,
        objective=objective,
        max_model_len=max_model_len,
        variants=[_variant(text) for text in variants],
        flags=dict(_flag(text) for text in flags),
        environment=dict(_variable(text) for text in variables),
        profiles=_measured_profiles(),
    )
    resolution = resolved(request)
    known = trades.towards(resolution.trades, resolution.kernel, criteria)
    sleeps = _standby(request, resolution) if wants_standby else None
    if as_json:
        answer = resolution.as_dict()
        if wants_standby:
            answer["standby"] = standby.as_dict(sleeps)
        answer["warnings"] += [f"known trade {trade}" for trade in known if not trade.passes]
        click.echo(json.dumps(answer, indent=2))
    else:
        _show(resolution, known, locked, sleeps)
    if not resolution.understood:
        return DeclarationError.exit_code
    return 1 if resolution.errors else 0


def _locked(name: str) -> Checkpoint | None:
    """The model that `pyinfra-vllm lock` has written down here under a repository's name, with or without its
    organisation and revision; None where it hasn't.
    """
    if not LOCK_FILE.exists():
        return None
    repo, _, revision = name.partition("@")
    found = [
        entry
        for entry in Lock.load().entries
        if repo in (entry.repo, entry.repo.rpartition("/")[2]) and revision in ("", entry.revision)
    ]
    if len(found) > 1:
        told = " or ".join(entry.name for entry in found)
        raise DeclarationError(f"model {name!r} is in {LOCK_FILE} more than once: say {told}")
    return found[0] if found else None


def _shape(locked: Checkpoint) -> Shape:
    return shapes.from_config(locked.repo, locked.config, locked.weights_bytes)


def _card(name: str | None, memory: str | None, capability: str | None) -> Gpu:
    """The card that is asked about; memory and compute capability, if given, overrule catalog and file."""
    if memory is None and capability is None:
        if name is None:
            raise DeclarationError("Which card? Say --gpu NAME, or --gpu-memory and --compute-capability")
        return gpus.find(name, own=_own_cards())
    if memory is None or capability is None:
        raise DeclarationError(
            "--gpu-memory and --compute-capability describe a card together: say both, or leave both out"
        )
    if name is not None:
        gpus.refuse_other_makers(name)
        if gpus.normal(name) == "cpu":
            raise DeclarationError(
                "--gpu cpu: leave out --gpu-memory and --compute-capability, which a CPU has not"
            )
    mib = _described(memory, "--gpu-memory", gpus.memory_of)
    known = _described(capability, "--compute-capability", gpus.capability_of)
    return gpus.described(name or f"a card of {memory}, compute capability {known}", known, mib)


def _described(text: str, option: str, read: Callable[[str], T]) -> T:
    try:
        return read(text)
    except ValueError as error:
        raise DeclarationError(f"{option} {_shown(text)}: {error}") from None


def _own_cards() -> tuple[Gpu, ...]:
    if not Path("cards.yaml").exists():
        return ()
    from pyinfra_vllm.config import cards  # pydantic takes a tenth of a second

    return cards.own()


def _measured_profiles() -> Sequence[MeasuredProfile]:
    if not Path("profiles").is_dir():
        return ()
    from pyinfra_vllm.config import profiles  # as above

    return profiles.own()


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not VARIABLE.fullmatch(name):
        raise DeclarationError(f"--env {_shown(text)}: must be NAME=VALUE, such as VLLM_LOGGING_LEVEL=DEBUG")
    from pyinfra_vllm.config.problems import SECRET_NAME  # pydantic takes a tenth of a second

    if SECRET_NAME.search(name):
        raise DeclarationError(
            f"--env {name}: looks like a secret, and a command line can be read by everybody on this machine:"
            " leave it out, for no flag depends on it"
        )
    return name, value


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
        deepest = f"allowed are {DEEPEST} levels"
        raise DeclarationError(f"{where}: {_shown(text)} is nested too deep; {deepest}") from None


def _shown(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _standby(request: Request, resolution: Resolution) -> str:
    """Why the servers of such a service can't sleep; empty where they can."""
    cards = () if request.card.platform == "cpu" else (request.card.title,)
    flags, variables = resolution.values, resolution.environment
    return "; ".join(standby.hindrances(request.version, cards, flags, variables, request.shape.hybrid))


def _show(
    resolution: Resolution, known: list[Trade], locked: Checkpoint | None, sleeps: str | None = None
) -> None:
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
        row = (" ".join(tokens(flag.flag, flag.value)), flag.reason, flag.source)
        table.add_row(*(Text(cell) for cell in row))
    for setting in resolution.settings:
        row = (f"{setting.flag}={setting.value}", setting.reason, setting.source)
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    if locked:
        source = f"Sizes of the model: {locked.name}, commit {locked.commit[:12]}, of {LOCK_FILE}"
        console.print(source, markup=False, highlight=False)
    if resolution.measured:
        console.print(f"Measured profile: {resolution.measured}", markup=False, highlight=False)
    for line in _facts(resolution):
        console.print(line, markup=False, highlight=False)
    if sleeps is not None:
        console.print(f"Standby: {standby.told(sleeps)}", markup=False, highlight=False)
        console.print(f"Warning: {standby.UNTRIED}", style="yellow", markup=False, highlight=False)
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
        _fits(fit),
    ]


def _fits(fit: Fit) -> str:
    reserve = f"{abs(fit.reserve_bytes) / GIB:.2f} GiB"
    if not fit.fits:
        return f"Fits: no, {reserve} are missing for one request of full length"
    if not fit.tight:
        return f"Fits: yes, with {reserve} in reserve beside one request of full length"
    return (
        f"Fits: tightly, with {reserve} in reserve beside one request of full length, which is less than the"
        " prediction may be off by"
    )
