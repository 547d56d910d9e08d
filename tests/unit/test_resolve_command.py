"""`pyinfra-vllm resolve`: the contract of its JSON, its exit codes, its table, and how fast it starts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from pyinfra_vllm import cli

ASKED = (
    "--model",
    "Qwen/Qwen3-32B-AWQ",
    "--gpu",
    "NVIDIA GeForce RTX 4090",
    "--runtime",
    "0.33.0",
    "--max-model-len",
    "4096",
)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.cli, ["resolve", *arguments], standalone_mode=False)


def main(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["resolve", *arguments])
    return int(str(ended.value.code))


def test_the_json_has_exactly_the_contract_s_keys() -> None:
    answer = json.loads(run(*ASKED, "--json").stdout)
    assert list(answer) == ["flags", "environment", "fit", "kernel", "warnings", "errors"]
    assert all(list(flag) == ["flag", "value", "reason", "source"] for flag in answer["flags"])
    assert list(answer["fit"]) == [
        "weights_bytes",
        "kv_bytes_per_token",
        "kv_tokens",
        "max_concurrency",
        "fits",
    ]
    assert answer["kernel"] == ["Marlin"]
    assert answer["errors"] == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (ASKED, 0),
        ((*ASKED, "--json"), 0),
        ((*ASKED[:-1], "40960"), 1),
        ((*ASKED[:2], "--gpu", "V100", *ASKED[4:]), 1),
        ((*ASKED, "--gpu-count", "3"), 1),
        ((*ASKED, "--flag", "swap-space=4"), 1),
        ((*ASKED[:4],), 2),
        ((*ASKED, "--objective", "fast"), 2),
        (("--model", "no/such", *ASKED[2:]), 2),
        ((*ASKED[:2], "--gpu", "Voodoo", *ASKED[4:]), 2),
        ((*ASKED[:4], "--runtime", "newest"), 2),
        ((*ASKED, "--flag", "swap-space"), 2),
        ((*ASKED, "--variant", "{mtp"), 2),
    ],
)
def test_exit_codes(arguments: tuple[str, ...], code: int) -> None:
    assert main(*arguments) == code


def test_the_table_shows_flag_reason_source_fit_and_kernel() -> None:
    shown = run(*ASKED).stdout
    for text in (
        "--max-num-seqs 16",
        "graphs for 256",
        "Source",
        "VLLM_NO_USAGE_STATS=1",
        "KV cache: ",
        "Fits: yes",
        "Marlin",
    ):
        assert text in shown


def test_errors_are_in_the_table_too() -> None:
    assert "use 1, 2, 4 or 8 GPUs" in " ".join(run(*ASKED, "--gpu-count", "3").stdout.split())


def test_variants_and_flags_can_be_tried() -> None:
    tried = (
        "--variant",
        "fp8_kv_cache",
        "--variant",
        "batched_graphs=8",
        "--variant",
        '{"ngram": {"tokens": 3}}',
    )
    answer = json.loads(
        run(*ASKED, *tried, "--flag", "enforce-eager=true", "--flag", "seed=7", "--json").stdout
    )
    values = {flag["flag"]: flag["value"] for flag in answer["flags"]}
    assert values["--kv-cache-dtype"] == "fp8"
    assert values["--max-cudagraph-capture-size"] == 32
    assert (values["--enforce-eager"], values["--seed"]) == (True, 7)


def test_neither_pyinfra_nor_the_hub_nor_rich_is_imported_for_json() -> None:
    program = (
        "import sys; from pyinfra_vllm import cli\n"
        f"try: cli.main(['resolve', *{list(ASKED)!r}, '--json'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('pyinfra', 'gevent', 'huggingface_hub', 'rich.table', 'pydantic') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
