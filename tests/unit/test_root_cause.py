"""Why a start failed, found in real logs of vLLM that was started with something broken, and in what systemd
says.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pyinfra_vllm.on_host.server import root_cause

RECORDED = Path(__file__).parents[1] / "fixtures/root_cause"
KERNEL_LOGS = Path(__file__).parents[1] / "fixtures/kernel"

# fixture: which process, how its cause begins, whether the next start would fail for the same
CAUSES = {
    "unknown-flag": ("", "vllm: error: unrecognized arguments: --no-such-flag", True),
    "bad-int": ("", "vllm serve: error: argument --max-num-seqs: invalid int value: 'many'", True),
    "bad-choice": ("", "vllm serve: error: argument --dtype: invalid choice: 'float99'", True),
    "max-model-len": ("", "ValidationError: 1 validation error for ModelConfig Value error, User-specified",
    True),
    "corrupt-weights": ("Worker", "SafetensorError: Error while deserializing header: incomplete metadata",
    True),
    "missing-model": ("", "HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/tmp/absent'", True),  # noqa: E501
    "bad-config": ("",
    "OSError: It looks like the config file at '/tmp/m-bad-config/config.json' is not a valid JSON", True),
    "unknown-architecture": ("",
    "ValidationError: 1 validation error for ModelConfig Value error, Model architectures", True),
    "port-taken": ("", "OSError: [Errno 98] Address already in use", False),
    "chat-template": ("",
    "VLLMValidationError: The supplied chat template string (/tmp/absent.jinja) appears path-like", True),
    "config-json": ("", "vllm serve: error: argument --compilation-config/-cc: 1 validation error for CompilationConfig Invalid JSON: EOF", True),  # noqa: E501
    "speculative": ("",
    "ValidationError: 1 validation error for SpeculativeConfig method Input should be 'ngram'", True),
    # pydantic shows the whole configuration as the value, in which "shutdown_timeout" must not look like a
    # time-out
    "tensor-parallel": ("", "ValidationError: 1 validation error for VllmConfig Value error, Total number of attention heads (4)", True),  # noqa: E501
    "batched-tokens": ("",
    "ValidationError: 1 validation error for SchedulerConfig Value error, max_num_batched_tokens (8)", True),
    "kv-too-small": ("EngineCore",
    "ValueError: To serve at least one request with the model's max seq len (4096)", True),
    "worker-corrupt": ("Worker_TP0",
    "SafetensorError: Error while deserializing header: incomplete metadata", True),
    "missing-weights": ("Worker", "RuntimeError: Cannot find any model weights with `/tmp/m-no-weights`",
    True),
    "quantization": ("",
    "ValidationError: 1 validation error for ModelConfig Value error, Quantization method", True),
    # the API server's traceback comes last there, and says "See root cause above"
    "h200-fp8-kv-cache": ("EngineCore",
    "RuntimeError: For FP16/BF16 input, output must have the same dtype", False),
}  # fmt: skip


def recorded(name: str) -> list[str]:
    """The log without the lines that say how it was recorded."""
    lines = (RECORDED / f"{name}.log").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("# ")]


def found(log: list[str]) -> root_cause.Cause:
    cause = root_cause.find(log)
    assert cause is not None
    return cause


@pytest.mark.parametrize("name", CAUSES)
def test_cause_of_a_recorded_start(name: str) -> None:
    process, text, lasting = CAUSES[name]
    cause = found(recorded(name))
    assert (cause.process, cause.text[: len(text)], cause.lasting) == (process, text, lasting)
    assert "\n" not in str(cause) and len(cause.text) <= root_cause.TEXT_LIMIT


def test_every_recorded_start_has_an_expectation() -> None:
    assert {path.stem for path in RECORDED.glob("*.log")} == {*CAUSES}


@pytest.mark.parametrize("name", CAUSES)
def test_nothing_of_progress_bars_and_banners_is_told(name: str) -> None:
    told = "\n".join(root_cause.explain(recorded(name)))
    assert "█" not in told and "Completed" not in told and "INFO" not in told


def test_traceback_is_without_prefixes_and_ends_at_the_exception() -> None:
    cause = found(recorded("corrupt-weights"))
    assert len(cause.traceback) == root_cause.TRACEBACK_LINES
    assert cause.traceback[-1].startswith("safetensors") and "SafetensorError" in cause.traceback[-1]
    assert not any("pid=" in line or "^^^" in line for line in cause.traceback)


@pytest.mark.parametrize("path", sorted(KERNEL_LOGS.glob("*.log")), ids=lambda path: path.stem)
def test_starts_that_went_well_have_no_cause(path: Path) -> None:
    if "fp8kv" not in path.stem:
        assert root_cause.find(path.read_text(encoding="utf-8").splitlines()) is None


# What follows is in vLLM's and systemd's forms, and was not recorded here: no GPU, no second GPU, no lack of
# memory.
ENGINE = "(EngineCore_DP0 pid=7) ERROR 11-28 05:55:06 [core.py:1510] "


def raised(exception: str, prefix: str = ENGINE) -> list[str]:
    lines = [
        "EngineCore failed to start.",
        "Traceback (most recent call last):",
        '  File "/opt/v/core.py", line 1, in run',
    ]
    return [prefix + line for line in [*lines, "    raise it", *exception.splitlines()]]


@pytest.mark.parametrize(
    "exception",
    [
        "ValueError: Free memory on device cuda:0 (3.22/4.0 GiB) on startup is less than desired GPU memory utilization"  # noqa: E501
        " (0.9, 3.6 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 50.00 MiB.",
        "AssertionError: Error in memory profiling. Initial free memory 10.0 GiB, current free memory 12.0 GiB.",  # noqa: E501
        "RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)",
        "torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients.",
        "OSError: [Errno 98] Address already in use",
        "RuntimeError: CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "RuntimeError: something that nobody has seen yet",
    ],
)
def test_what_may_be_gone_at_the_next_start_is_tried_again(exception: str) -> None:
    cause = found(raised(exception))
    assert cause.process == "EngineCore_DP0" and not cause.lasting
    assert exception.splitlines()[-1].rpartition(": ")[2] in cause.text


@pytest.mark.parametrize(
    "exception",
    [
        "ValueError: To serve at least one request with the models's max seq len (40960), 5.62 GiB KV cache is needed, which is"  # noqa: E501
        " larger than the available KV cache memory (1.20 GiB).",
        "FileNotFoundError: [Errno 2] No such file or directory: '/m/model.safetensors'",
        "OSError: /m does not appear to have a file named config.json.",
        "ModuleNotFoundError: No module named 'flashinfer'",
    ],
)
def test_what_the_next_start_would_meet_again_is_lasting(exception: str) -> None:
    assert found(raised(exception)).lasting


def test_the_first_worker_that_failed_is_named_before_engine_and_other_workers() -> None:
    worker = "(Worker_TP{} pid={}) ERROR 11-28 05:55:06 [multiproc_executor.py:953] "
    log = [
        *raised("torch.OutOfMemoryError: CUDA out of memory.", worker.format(1, 12)),
        *raised("RuntimeError: NCCL error: remote process exited", worker.format(0, 11)),
        *raised(
            "Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace"  # noqa: E501
        ),
    ]
    assert str(found(log)) == "Worker_TP1: OutOfMemoryError: CUDA out of memory."


def test_the_deepest_process_counts_also_where_others_have_an_exception_of_their_own() -> None:
    api = raised("RuntimeError: the engine is gone", "(APIServer pid=1) ")
    engine = raised("RuntimeError: a worker is gone")
    worker = raised("ValueError: no", "(Worker pid=12) ERROR 11-28 05:55:06 [multiproc_executor.py:953] ")
    assert str(found([*api, *engine, *worker])) == "Worker: ValueError: no"
    assert str(found([*api, *engine])) == "EngineCore_DP0: RuntimeError: a worker is gone"


def test_lines_of_two_processes_in_turn_are_taken_apart() -> None:
    first = raised("ValueError: one", "(Worker_TP0 pid=11) ERROR 11-28 05:55:06 [multiproc_executor.py:953] ")
    other = raised("ValueError: two", "(Worker_TP1 pid=12) ERROR 11-28 05:55:06 [multiproc_executor.py:953] ")
    mixed = [line for pair in zip(first, other, strict=True) for line in pair]
    assert str(found(mixed)) == "Worker_TP0: ValueError: one"


def test_a_chain_of_exceptions_is_told_by_its_last_one_with_the_whole_chain() -> None:
    log = [
        *raised("KeyError: 'rope'", ""),
        "",
        "The above exception was the direct cause of the following exception:",
        "",
        "Traceback (most recent call last):",
        '  File "/opt/v/x.py", line 2, in load',
        "ValueError: rope_scaling lacks rope",
    ]
    cause = found(log)
    assert cause.text == "ValueError: rope_scaling lacks rope"
    assert "KeyError: 'rope'" in cause.traceback


def test_the_newest_start_counts() -> None:
    restart = "vllm-chat.service: Scheduled restart job, restart counter is at 1."
    log = [
        *raised("torch.OutOfMemoryError: CUDA out of memory."),
        restart,
        *raised("ValueError: no such thing"),
    ]
    assert found(log).text == "ValueError: no such thing"
    assert (
        found([*log, restart, "INFO 11-28 05:55:06 [x.py:1] a start that goes on"]).text
        == "ValueError: no such thing"
    )


@pytest.mark.parametrize(
    ("said", "text", "lasting"),
    [
        (
            [
                "Failed to locate executable /opt/vllm/bin/vllm: No such file or directory",
                "Failed at step EXEC spawning /opt/vllm/bin/vllm: No such file or directory",
                "Main process exited, code=exited, status=203/EXEC",
                "Failed with result 'exit-code'.",
            ],
            "Failed to locate executable /opt/vllm/bin/vllm: No such file or directory",
            True,
        ),
        (
            [
                "Failed to determine user credentials: No such process",
                "Failed at step USER spawning /opt/vllm/bin/vllm: No such process",
                "Main process exited, code=exited, status=217/USER",
            ],
            "Failed to determine user credentials: No such process",
            True,
        ),
        (
            [
                "A process of this unit has been killed by the OOM killer.",
                "Main process exited, code=killed, status=9/KILL",
                "Failed with result 'oom-kill'.",
            ],
            "A process of this unit has been killed by the OOM killer.",
            False,
        ),
        (
            ["Main process exited, code=dumped, status=11/SEGV", "Failed with result 'core-dump'."],
            "Main process exited, code=dumped, status=11/SEGV",
            False,
        ),
    ],
)
def test_systemd_s_own_reason(said: list[str], text: str, lasting: bool) -> None:
    cause = found([f"vllm-chat.service: {line}" for line in said])
    assert (cause.process, cause.text, cause.lasting) == ("systemd", text, lasting)


def test_colours_do_not_hide_the_cause() -> None:
    log = [f"\x1b[36m(EngineCore pid=7)\x1b[0;0m {line}" for line in raised("ValueError: no", "")]
    assert str(found(log)) == "EngineCore: ValueError: no"


def test_without_a_cause_the_last_lines_are_told_without_noise() -> None:
    log = [
        "INFO 11-28 05:55:06 [x.py:1] Starting",
        "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01,  1.0it/s]",
        'INFO:     127.0.0.1:44 - "POST /v1/completions HTTP/1.1" 200 OK',
        "the last thing that it said",
    ]
    assert root_cause.find(log) is None
    assert root_cause.explain(log) == ["INFO 11-28 05:55:06 [x.py:1] Starting", "the last thing that it said"]


def test_a_log_without_end_stays_bounded() -> None:
    log = raised("ValueError: " + "x" * 10_000 + "\n" + "y" * 10_000)
    assert sum(map(len, root_cause.explain(log))) < 8_000
