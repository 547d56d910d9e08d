"""Runs `vllm bench serve`, and converts its results into records that the gate reads. Judges nothing."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import DeclarationError, HostError, one_line
from .on_host.bench.plan import phase_name
from .on_host.bench.record import Phase, Record, Request
from .on_host.state.values import amount, count, list_of

# Of `vllm bench serve` at each concurrency: long enough to be steady, short enough for a budget of minutes.
INPUT_TOKENS, OUTPUT_TOKENS, BATCHES, SEED = 256, 128, 6, 1
ENGINE_TIMEOUT_S = 900


def converted(value: Any, name: str) -> Any:
    """A result of `vllm bench serve` as a record; anything else as it is.

    Raises DeclarationError for a result that can't be compared.
    """
    if not isinstance(value, dict) or "schema" in value:
        return value
    try:
        if "ttfts" in value or "output_throughput" in value:
            return from_vllm_bench([value]).as_dict()
    except (KeyError, IndexError) as error:
        raise DeclarationError(
            f"{name} looks like a result of `vllm bench serve` and lacks {error}: nothing was compared"
        ) from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DeclarationError(
            f"{name} looks like a result of `vllm bench serve` and can't be one ({one_line(error)}): nothing"
            " was compared"
        ) from error
    return value


def from_vllm_bench(results: Sequence[Mapping[str, Any]]) -> Record:
    """A record with one phase for each result of `vllm bench serve --save-result --save-detailed`."""
    for result in results:
        if "ttfts" not in result:
            raise DeclarationError(
                "a result of `vllm bench serve` without --save-detailed has no single requests: run it with"
                " that flag"
            )
    model = str(results[0].get("model_id", "?"))
    return Record(model, {}, tuple(map(_vllm_phase, results)), engine="vllm bench serve")


def _vllm_phase(result: Mapping[str, Any]) -> Phase:
    key = "max_concurrency" if result.get("max_concurrency") else "max_concurrent_requests"
    concurrency = result[key]
    count(concurrency, key, 1)
    errors = result.get("errors") or []
    columns = {key: result[key] for key in ("ttfts", "itls", "input_lens", "output_lens")}
    for key, column in columns.items():
        list_of(list_of(amount) if key == "itls" else amount)(column, key)
        if len(column) != len(columns["ttfts"]):
            raise ValueError(f"{key} has {len(column)} entries and ttfts has {len(columns['ttfts'])}")
    requests = []
    for index, (ttft, itls, tokens_in, tokens_out) in enumerate(zip(*columns.values(), strict=True)):
        error = errors[index] if index < len(errors) else ""
        requests.append(_request(index, error, ttft, ttft + sum(itls), tokens_in, tokens_out))
    return Phase(phase_name(concurrency), concurrency, result["duration"], tuple(requests))


def _request(index: int, error: str, ttft_s: float, e2e_s: float, tokens_in: int, tokens_out: int) -> Request:
    """Requests pair by their place: both sides must have been made from the same data and seed."""
    name = f"r{index:05d}"
    if error or not tokens_out:
        return Request(name, ok=False, error=(error or "no tokens").strip()[-300:])
    return Request(name, True, ttft_s, e2e_s, tokens_in, tokens_out)


def run_vllm_bench(
    program: str,
    url: str,
    model: str,
    tokenizer: str,
    concurrency: Sequence[int],
    say: Callable[[str], None] = lambda line: None,
    api_key: str | None = None,
) -> Record:
    """Run `vllm bench serve` of that runtime once for each concurrency and return the record.

    + program: the runtime's `vllm`
    + tokenizer: directory of the checkpoint, whose tokenizer cuts the random prompts

    + api_key: reaches it as OPENAI_API_KEY, through its environment and never on its command line

    Raises HostError.
    """
    environment = {**os.environ, **({"OPENAI_API_KEY": api_key} if api_key else {})}
    results = []
    with tempfile.TemporaryDirectory(prefix="pyinfra-vllm-") as folder:
        for streams in concurrency:
            say(f"vllm bench serve at {streams} streams")
            out = Path(folder) / f"c{streams}.json"
            command = _command(program, url, model, tokenizer, streams, out)
            try:
                done = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    timeout=ENGINE_TIMEOUT_S,
                    env=environment,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise HostError(f"`{program} bench serve` did not come to an end: {error}") from error
            if done.returncode or not out.exists():
                last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it said nothing"]
                raise HostError(f"`{program} bench serve` exited with {done.returncode}: {last[0]}")
            try:
                results.append(json.loads(out.read_text(encoding="utf-8")))
                from_vllm_bench(results[-1:])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise HostError(
                    f"`{program} bench serve` wrote what can't be read: {one_line(repr(error))}"
                ) from error
    return from_vllm_bench(results)


def _command(program: str, url: str, model: str, tokenizer: str, streams: int, out: Path) -> list[str]:
    return [
        *(program, "bench", "serve", "--backend", "openai", "--base-url", url, "--model", tokenizer),
        *("--served-model-name", model, "--tokenizer", tokenizer, "--dataset-name", "random"),
        *("--random-input-len", str(INPUT_TOKENS), "--random-output-len", str(OUTPUT_TOKENS)),
        *("--num-prompts", str(BATCHES * streams), "--max-concurrency", str(streams), "--seed", str(SEED)),
        *("--num-warmups", str(streams), "--ignore-eos", "--temperature", "0", "--disable-tqdm"),
        *("--save-result", "--save-detailed", "--result-dir", str(out.parent), "--result-filename", out.name),
    ]
