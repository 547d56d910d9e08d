"""`pyinfra-vllm resolve`: the contract of its JSON, its exit codes, its table, and how fast it starts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyinfra_vllm import cli
from pyinfra_vllm.checkpoint import LOCK_FILE, Checkpoint, File, Lock

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
        "tight",
        "reserve_bytes",
    ]
    assert answer["kernel"] == ["Marlin"]
    assert answer["errors"] == []


@pytest.mark.thorough
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
        ((*ASKED, "--variant", "batched_graphs=abc"), 2),
        ((*ASKED, "--variant", "batched_graphs=[1]"), 2),
        ((*ASKED, "--variant", "batched_graphs=0"), 2),
        ((*ASKED, "--variant", "batched_graphs=-4"), 2),
        ((*ASKED, "--variant", "batched_graphs=true"), 2),
        ((*ASKED, "--variant", "batched_graphs=Infinity"), 2),
        ((*ASKED, "--variant", "chunked_prefill=2k"), 2),
        ((*ASKED, "--variant", "ngram=-1"), 2),
        ((*ASKED, "--variant", "eagle3=5"), 2),
        ((*ASKED, "--variant", "=1"), 2),
        ((*ASKED, "--variant", '{"a":' * 100_000), 2),
        ((*ASKED, "--variant", "ngram=" + "[" * 100_000), 2),
        ((*ASKED, "--flag", "=1"), 2),
        ((*ASKED, "--flag", "--=1"), 2),
        ((*ASKED, "--flag", "tensor-parallel-size=0.5"), 2),
        ((*ASKED, "--flag", "gpu-memory-utilization=Infinity"), 2),
        ((*ASKED, "--flag", "max-num-seqs=1e400"), 2),
        ((*ASKED, "--flag", "max-num-seqs=" + "9" * 5000), 2),
        ((*ASKED, "--flag", "block-size=0"), 2),
        ((*ASKED, "--flag", "kv-cache-dtype=[1]"), 2),
        ((*ASKED, "--flag", 'speculative-config={"method"'), 2),
        ((*ASKED, "--flag", "hf-overrides=" + "[" * 100_000), 2),
        ((*ASKED, "--flag", "hf-overrides=" + "[" * 500 + "]" * 500), 2),
        ((*ASKED, "--gpu-count", "1000000000000"), 2),
        ((*ASKED, "--gpu-count", "1024"), 1),
        ((*ASKED[:4], "--runtime", "0.25.l"), 2),
        ((*ASKED, "--variant", "thinking", "--variant", "no_thinking"), 1),
    ],
)
def test_exit_codes(arguments: tuple[str, ...], code: int) -> None:
    assert main(*arguments) == code


def test_what_cannot_be_understood_names_what_was_said_and_what_may_be() -> None:
    answer = json.loads(run(*ASKED, "--variant", "batched_graphs=abc", "--json").stdout)
    assert answer["errors"] == [
        (
            "variants: batched_graphs: max_num_seqs must be a number above 0 (a whole one, written out), not"
            " 'abc'"
        )
    ]


@pytest.mark.parametrize("name", ["VLLM_API_KEY", "HF_TOKEN", "MY_PASSWORD"])
def test_a_secret_on_the_command_line_is_refused_and_not_shown(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(*ASKED, "--env", f"{name}=sk-0123456789") == 2
    told = capsys.readouterr()
    assert f"--env {name}: looks like a secret" in told.err.replace("\n", " ")
    assert "sk-0123456789" not in told.out + told.err


def test_no_fit_is_told_of_a_model_that_cannot_be_shared() -> None:
    answer = json.loads(run(*ASKED, "--gpu-count", "1024", "--json").stdout)
    assert answer["fit"] is None
    assert "1024 GPUs can't share" in str(answer["errors"])


def test_a_quantized_model_without_a_fast_kernel_is_not_called_unquantized() -> None:
    shown = run("--model", "Qwen/Qwen3-8B-AWQ", "--gpu", "V100", "--runtime", "0.18.0").stdout
    assert "Kernel expected: none that is fast" in shown
    whole = run("--model", "Qwen/Qwen3-8B", "--gpu", "H200", "--runtime", "0.28.0").stdout
    assert "Kernel expected: none (not quantized)" in whole


CONFIG = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def lock(*revisions: str, **changes: object) -> None:
    file = File(path="model.safetensors", size=16 * 10**9, sha256="c" * 64)
    Lock(
        Checkpoint(
            repo="acme/new-8b", revision=name, commit="a" * 40, files=(file,), config={**CONFIG, **changes}
        )
        for name in revisions
    ).dump(LOCK_FILE)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


NEW_MODEL = ("--model", "acme/new-8b", "--gpu", "L40S", "--runtime", "0.33.0")


@pytest.mark.usefixtures("elsewhere")
def test_a_model_outside_the_catalog_is_read_from_the_lock_beside_the_command() -> None:
    lock("main")
    for name in ("acme/new-8b", "acme/new-8b@main"):
        answer = json.loads(run("--model", name, *NEW_MODEL[2:], "--json").stdout)
        assert answer["errors"] == []
        assert answer["fit"]["weights_bytes"] == pytest.approx(16 * 10**9 * 1.014)
        assert answer["fit"]["kv_bytes_per_token"] == 131072


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("name", ["Qwen/Qwen3-32B-AWQ", "Qwen3-32B-AWQ", "Qwen/Qwen3-32B-AWQ@main"])
def test_what_is_locked_wins_over_the_catalog(name: str) -> None:
    """A fork of 20 layers under the catalog's name: 8 KV heads x 256 values x 2 bytes for each."""
    locked = {**CONFIG, "num_hidden_layers": 20}
    file = File(path="model.safetensors", size=7 * 10**9, sha256="c" * 64)
    Lock(
        [
            Checkpoint(
                repo="Qwen/Qwen3-32B-AWQ", revision="main", commit="a" * 40, files=(file,), config=locked
            )
        ]
    ).dump(LOCK_FILE)
    asked = ("--model", name, *ASKED[2:])
    fit = json.loads(run(*asked, "--json").stdout)["fit"]
    assert fit["kv_bytes_per_token"] == 20 * 8 * 256 * 2
    assert fit["weights_bytes"] == int(7 * 10**9 * 1.014)
    assert "Sizes of the model: Qwen/Qwen3-32B-AWQ@main, commit aaaaaaaaaaaa" in run(*asked).stdout
    other = json.loads(run("--model", "Qwen/Qwen3-14B-AWQ", *ASKED[2:], "--json").stdout)
    assert other["fit"]["kv_bytes_per_token"] == 163840  # the catalog's 40 layers: it isn't locked


@pytest.mark.usefixtures("elsewhere")
def test_a_model_that_is_nowhere_is_told_how_to_be_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(*NEW_MODEL) == 2
    assert "declare it, lock it, and ask in the directory of that file" in capsys.readouterr().err
    lock("main", num_hidden_layers=None)
    assert main(*NEW_MODEL) == 2
    assert "acme/new-8b: its config.json has no `num_hidden_layers`" in capsys.readouterr().err
    lock("main", "v2")
    assert main(*NEW_MODEL) == 2
    assert "say acme/new-8b@main or acme/new-8b@v2" in capsys.readouterr().err
    LOCK_FILE.write_text("nonsense")
    assert main(*NEW_MODEL) == 2


@pytest.mark.alone
def test_one_answer_takes_well_under_what_a_person_waits_for() -> None:
    """The issue's second, as the better of three whole processes: interpreter, imports, tables and answer."""
    program = f"from pyinfra_vllm import cli; cli.main(['resolve', *{list(ASKED)!r}, '--json'])"
    times = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=30)
        times.append(time.monotonic() - began)
    assert min(times) < 1.0  # seconds; 0.15 on a quiet machine


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


@pytest.mark.parametrize(
    ("length", "said"),
    [
        ("4096", "Fits: yes, with 1.3"),
        ("9216", "Fits: tightly, with 0.0"),
        ("12288", "Fits: no, 0.6"),
    ],
)
def test_the_reserve_is_told(length: str, said: str) -> None:
    """Room for 9,488 tokens of 256 KiB."""
    assert said in run(*ASKED[:-1], length).stdout


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
        f"import sys; from pyinfra_vllm import cli\ntry: cli.main(['resolve', *{list(ASKED)!r}, '--json'])\n"
        "except SystemExit: pass\nprint([m for m in ('pyinfra', 'gevent', 'huggingface_hub', 'rich.table',"
        " 'pydantic') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stderr.strip() == "[]"


def test_whether_the_servers_can_sleep_is_said_where_it_is_asked() -> None:
    assert "standby" not in json.loads(run(*ASKED, "--json").stdout)
    answer = json.loads(run(*ASKED, "--standby", "--json").stdout)
    assert answer["standby"] == {"possible": True, "because": ""}
    several = run(*ASKED, "--standby", "--flag", "api-server-count=2").stdout
    assert "Standby: no, because --api-server-count 2 has several processes" in several
    assert "has tried it on one GPU with one model" in several
