"""`pyinfra-vllm bench`: runs the gate's probe against any OpenAI-compatible server and writes a record.

Judges nothing and changes nothing on the server. The API key comes from VLLM_API_KEY, never from an argument.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from pyinfra_vllm import lm_eval
from pyinfra_vllm.commands import options
from pyinfra_vllm.commands.files import record_in
from pyinfra_vllm.errors import DeclarationError, HostError
from pyinfra_vllm.on_host.bench import phases, probe
from pyinfra_vllm.on_host.bench.plan import Settings
from pyinfra_vllm.on_host.bench.questions import QuestionsError
from pyinfra_vllm.on_host.bench.record import Record, Scores, read_with_plan
from pyinfra_vllm.on_host.openai.client import Client
from pyinfra_vllm.on_host.state.values import RecordError
from pyinfra_vllm.printable import printable
from pyinfra_vllm.second_opinion import run_vllm_bench

KEY_VARIABLE = "VLLM_API_KEY"
DEFAULT_CONCURRENCY = Settings().concurrency  # of a server of which nothing is known
SHORTEST_S, LONGEST_S = 5, 86400
Say = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """The record that was written, summed up. `answered`: whether any request was."""

    out: str
    summary: Mapping[str, Any]
    client: object
    evaluations: Scores
    answered: bool

    def as_dict(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if key != "answered"}


def measured(
    url: str,
    model: str,
    settings: Settings,
    *,
    like: Path | None = None,
    api_key: str | None = None,
    say: Say = lambda line: None,
) -> Record:
    """The probe's record of the server.

    Raises DeclarationError for settings that can't be used and HostError for a server that can't be measured.
    """
    client = _client(url, model, api_key)
    baseline = _baseline(like) if like else None
    try:
        record = probe.measure(client, settings, progress=say, like=baseline)
    except QuestionsError as error:
        raise DeclarationError(str(error)) from error
    except probe.ProbeError as error:
        raise HostError(f"{url}: {error}") from error
    return record


def _client(url: str, model: str, api_key: str | None) -> Client:
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        # http.client would refuse such a header, and show the key while it does
        raise DeclarationError(
            f"{KEY_VARIABLE} holds more than printable ASCII, perhaps a line break: no header can carry it"
        )
    try:
        return Client(url, model, api_key=api_key)
    except ValueError as error:
        raise DeclarationError(f"--url {error}") from error


def _baseline(path: Path) -> Record:
    try:
        return read_with_plan(record_in(path), "record")
    except RecordError as error:
        raise DeclarationError(
            f"--like {path}: {error}. Nothing was measured: give a record that `bench` wrote"
        ) from error


def check_options(out: Path, concurrency: tuple[int, ...], like: Path | None) -> tuple[int, ...]:
    """The concurrencies to measure at: as asked, else like the other record, else 1, 8 and 64.

    Raises DeclarationError for wrong options, before the server is asked anything.
    """
    for number in concurrency:
        if concurrency.count(number) > 1:
            raise DeclarationError(f"--concurrency {number} is given twice: give each number once")
    if like is not None:
        recorded = tuple(int(phase.concurrency) for phase in _baseline(like).phases)
        if concurrency and set(concurrency) != set(recorded):
            raise DeclarationError(
                f"--concurrency {_listed(concurrency)}: --like {like} was measured at {_listed(recorded)};"
                " leave it out"
            )
        concurrency = recorded
    _check_writable(out)
    return concurrency or DEFAULT_CONCURRENCY


def _listed(numbers: tuple[int, ...]) -> str:
    return " and ".join(map(str, numbers))


def _check_writable(out: Path) -> None:
    """Open it as it will be opened, and leave nothing behind. A pipe or a terminal can only be tried once."""
    try:
        if out.is_file():
            out.open("a").close()
        elif not out.exists():
            out.open("x").close()
            out.unlink()
    except OSError as error:
        raise DeclarationError(
            f"--out {out} can't be written: {error.strerror}. Nothing was measured"
        ) from error


def written(record: Record, out: Path) -> Measured:
    """Write the record."""
    try:
        out.write_text(json.dumps(record.as_dict(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DeclarationError(f"--out {out} can't be written: {error.strerror}") from error
    return Measured(
        out=str(out),
        summary=phases.summary(record),
        client=vars(record.client) if record.client else None,
        evaluations=record.evaluations or {},
        answered=any(phase.answered for phase in record.phases),
    )


def sentences(result: Measured) -> list[str]:
    """The result for a person."""
    lines = []
    for name, item in result.summary.items():
        if isinstance(item, str):
            lines.append(f"{name}: {item} right")
        elif item["requests"]:
            lines.append(
                f"{name}: {item['tokens_per_s']} tokens/s, median first token {item['ttft_s'] * 1000:.1f} ms,"
                f" median answer {item['e2e_s']:.3f} s, {item['requests']} requests, {item['errors']} failed"
            )
        else:
            lines.append(f"{name}: no request was answered, {item['errors']} failed")
    lines += [f"{name}: {score['value']:.4g}" for name, score in result.evaluations.items()]
    return [*lines, f"{result.out} was written: compare it with `pyinfra-vllm compare`."]


@click.command()
@click.option("--url", required=True, help="Base URL of the server, such as http://127.0.0.1:8000.")
@click.option("--model", required=True, help="The name that the server serves the model under.")
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The record to write."
)
@click.option(
    "--concurrency",
    multiple=True,
    type=click.IntRange(1),
    help="Requests at once; repeatable [1, 8 and 64, or those of --like].",
)
@click.option(
    "--budget",
    default=120.0,
    show_default=True,
    type=options.Seconds(SHORTEST_S, LONGEST_S),
    help="Seconds for all of it.",
)
@click.option("--quality/--no-quality", default=True, help="Ask the graded questions too.")
@click.option("--prompts", type=click.Path(dir_okay=False), help="Your own graded prompts, a JSONL file.")
@click.option("--only-own-prompts", is_flag=True, help="Leave the built-in questions out.")
@click.option("--keep-answers", is_flag=True, help="Write the text of answers into the record.")
@click.option(
    "--like",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure like this record, so that the two compare.",
)
@click.option(
    "--engine",
    type=click.Choice(["probe", "vllm-bench"]),
    default="probe",
    help="vllm-bench: the runtime's own benchmark as a second opinion.",
)
@click.option(
    "--vllm", "program", default="vllm", show_default=True, help="The runtime's `vllm`, for vllm-bench."
)
@click.option(
    "--tokenizer",
    type=click.Path(),
    help="Directory of the checkpoint, for vllm-bench and for lm-eval's likelihoods.",
)
@click.option(
    "--lm-eval", "tasks", metavar="TASKS", help="Then run the installed lm_eval with these tasks, for hours."
)
@click.option(
    "--evaluations",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Add the scores that lm_eval wrote already, its results_*.json.",
)
@options.json_wanted
def bench(
    url: str,
    model: str,
    out: Path,
    concurrency: tuple[int, ...],
    budget: float,
    quality: bool,
    prompts: str | None,
    only_own_prompts: bool,
    keep_answers: bool,
    like: Path | None,
    engine: str,
    program: str,
    tokenizer: str | None,
    tasks: str | None,
    evaluations: Path | None,
    json_wanted: bool,
) -> int:
    """Measure a server and write a benchmark record. An API key is read from VLLM_API_KEY."""

    def say(line: str) -> None:
        click.echo(printable(line), err=True)

    settings = Settings(
        concurrency=check_options(out, concurrency, like),
        budget_s=budget,
        quality=quality,
        quality_builtin=not only_own_prompts,
        quality_prompts=prompts,
        keep_answers=keep_answers,
    )
    key = os.environ.get(KEY_VARIABLE)
    scores = lm_eval.read(evaluations) if evaluations else {}
    if tasks:
        lm_eval.check_installed()
    if engine == "vllm-bench":
        if tokenizer is None:
            raise DeclarationError("--engine vllm-bench needs --tokenizer, the directory of the checkpoint")
        _client(url, model, key)  # the same URLs are refused, whichever program measures
        record = run_vllm_bench(program, url, model, tokenizer, settings.concurrency, say, key)
    else:
        record = measured(url, model, settings, like=like, api_key=key, say=say)
    if tasks:
        written(replace(record, evaluations=scores or None), out)
        say(f"{out} was written; what {lm_eval.PROGRAM} finds is added to it, hours from now")
        scores |= lm_eval.run(url, model, tasks, tokenizer, key)
    result = written(replace(record, evaluations=scores or None), out)
    click.echo(json.dumps(result.as_dict(), indent=2) if json_wanted else "\n".join(sentences(result)))
    return int(not result.answered)
