"""Which quantization kernel a vLLM server really took, read from its own log.

vLLM chooses the kernel while it loads the model and says so in wording that changed over its versions. A ten
times slower kernel serves the same text, so nothing but these lines (or the clock) shows it. This module
reads lines; it never starts, stops or asks a server, and it knows nothing of GPUs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Kernel classes of vllm/model_executor/kernels/linear, without their `LinearKernel` ending. Anything else is
# slow.
FAST_ON_GPU = ("Marlin", "Machete", "Humming")
FAST_ON_CPU = ("CPUWNA16", "ZentorchWNA16", "Dynamic4bit")
# `Using 'X' WNA16 MoE backend.` (fused_moe/oracle/int_wna16.py, 0.20 and newer)
FAST_MOE = {
    "MARLIN": "Marlin",
    "BATCHED_MARLIN": "Marlin",
    "HUMMING": "Humming",
    "FLASHINFER_TRTLLM": "FlashInfer",
    "CPU": "CPUWNA16",
    "ZEN_CPU": "ZentorchWNA16",
}

# 0.11 to 0.23: the choice of the method. Up to 0.18 it also fixes the kernel, which is then Marlin.
CONVERTED = re.compile(r"The model is convertible to awq_marlin during runtime\. Using awq_marlin kernel")
# 0.19 to 0.23 AWQMarlinLinearMethod and GPTQMarlinLinearMethod, then AutoAWQMarlinLinearMethod and
# AutoGPTQLinearMethod; llm-compressor's W4A16 in all; 0.31 and newer also say it once for whatever method.
CHOSEN = re.compile(
    r"Using (\w+?)(?:LinearKernel)? for "
    r"((?:Auto)?AWQMarlinLinearMethod|AutoGPTQLinearMethod|GPTQMarlinLinearMethod|"
    r"CompressedTensorsWNA16\b|mixed-precision linear|CompressedTensorsW8A8Int8)"
)
# Weights and activations of 8 bits (FP8, INT8): `Selected CutlassFP8ScaledMMLinearKernel for Fp8LinearMethod`
# A name has at most 99 letters on either side: without a bound, one line could be made to take a second.
SELECTED = re.compile(r"Selected (\w{0,99}(?:ScaledMM|BlockScaled)\w{0,99}?)(?:LinearKernel|Kernel)? for \w+")
# Weights of 4-bit floats, from 0.20 on: `Using MarlinNvFp4LinearKernel for NVFP4 GEMM`, and of experts
# `Using 'TRITON' Mxfp4 MoE backend.` and `Using 'MARLIN' NvFp4 MoE backend out of potential backends: ...`
FP4 = re.compile(r"Using (\w{0,99}NvFp4\w{0,99}?)(?:LinearKernel)? for NVFP4 GEMM")
FP4_EXPERTS = re.compile(r"Using '(\w+)' (NvFp4|Mxfp4) MoE backend")
# What no card is fast with; every other one is vLLM's best for the card that has it.
SLOW_SCALED = re.compile(r"Emulation|EMULATION|BlockWiseTorch")
# llm-compressor's experts: up to 0.19 the first name is Marlin's and the second the slow one's, which from
# 0.20 on is the fast one's.
CT_EXPERTS = re.compile(r"Using CompressedTensorsWNA16(Marlin)?MoEMethod\b")
MOE = re.compile(r"Using '(\w+)' WNA16 MoE backend")

SLOW = (
    (
        re.compile(r"so forcing awq\b"),
        "--quantization awq forces the slow AWQ kernel up to vLLM 0.23 (13.68 instead of 126.70 tokens/s in"
        " one measured case): remove the flag",
    ),
    (
        re.compile(r"is not supported by (?:Auto)?AWQMarlin\. Falling back to unoptimized AWQ kernels"),
        "a layer fell back to the unoptimized AWQ kernel",
    ),
    (
        re.compile(r"Falling back to Moe WNA16 kernels"),
        "the experts fell back to the generic MoE WNA16 kernel",
    ),
)
DEGRADED = re.compile(r"Marlin requires thread-tile padding")

ENGINE = re.compile(r"Initializing a V\d LLM engine \(v([^)\s]+)\) with config")
UNQUANTIZED = re.compile(r"\bquantization=None\b")

LAST_WITHOUT_KERNEL_LINE = (0, 18)
FIRST_WITH_EXPERTS_LINE = (0, 20)
MAX_LINES = 40  # kept as evidence
MAX_LINE_LENGTH = 300


def check(
    lines: Iterable[str], version: str | None = None, expected: Iterable[str] | None = None
) -> dict[str, object]:
    """The verdict on the kernel that a server took.

    + lines: the server's log since its start; prefixes (journal, process, time) may stay on them
    + version: the runtime's version; None: the one that the log names
    + expected: kernels the profile expects, such as ["Marlin"], and as the second those of a mixture of
        experts; [] for a model that is not quantized; None: unknown

    Returns {"verdict": "pass" | "fail" | "inconclusive", "kernels": [...], "lines": [...], "reasons": [...]}.
    No line about the kernel is inconclusive: a changed wording must not look like a healthy server.
    """
    seen = _read(lines)
    wanted = None if expected is None else list(expected)
    version = seen.version or version
    verdict, reasons = _judge(seen, version, wanted)
    if seen.degraded:
        reasons.append(
            "Marlin pads some of this model's shapes: it is the fast kernel, with part of its speed lost"
        )
    return {"verdict": verdict, "kernels": seen.kernels, "lines": seen.evidence, "reasons": reasons}


class _Seen:
    """The kernels and warnings of the log, each once and in the order of the lines."""

    def __init__(self) -> None:
        self.version: str | None = None
        self.unquantized = False
        self.converted = False
        self.degraded = False
        self.experts = False
        self.plain_experts = False  # llm-compressor's method of that name
        self.kernels: list[str] = []
        self.slow: list[str] = []
        self.evidence: list[str] = []

    def kernel(self, name: str) -> None:
        if name not in self.kernels:
            self.kernels.append(name)

    def keep(self, line: str) -> None:
        if len(self.evidence) < MAX_LINES:
            self.evidence.append(line.strip()[:MAX_LINE_LENGTH])


def _read(lines: Iterable[str]) -> _Seen:
    seen = _Seen()
    for line in lines:
        if _read_engine(line, seen) or _read_kernel(line, seen) or _read_slow(line, seen):
            seen.keep(line)
    return seen


def _read_engine(line: str, seen: _Seen) -> bool:
    engine = ENGINE.search(line)
    if not engine:
        return False
    seen.version = engine.group(1)
    seen.unquantized = UNQUANTIZED.search(line) is not None
    return True


def _read_kernel(line: str, seen: _Seen) -> bool:
    if CONVERTED.search(line):
        seen.converted = True
        return True
    chosen = CHOSEN.search(line)
    if chosen:
        seen.kernel(chosen.group(1))
        return True
    selected = SELECTED.search(line) or FP4.search(line)
    if selected:
        seen.kernel(selected.group(1))
        return True
    experts = CT_EXPERTS.search(line)
    if experts:
        if experts.group(1):
            seen.experts = True
            seen.kernel("Marlin")
        else:
            seen.plain_experts = True
        return True
    small = FP4_EXPERTS.search(line)
    if small:
        seen.experts = True
        seen.kernel(f"{small.group(1)} {small.group(2)}")
        return True
    moe = MOE.search(line)
    if moe:
        seen.experts = True
        seen.kernel(FAST_MOE.get(moe.group(1), "MoE " + moe.group(1)))
        return True
    return False


def _read_slow(line: str, seen: _Seen) -> bool:
    if DEGRADED.search(line):
        seen.degraded = True
        return True
    for pattern, meaning in SLOW:
        if pattern.search(line):
            if meaning not in seen.slow:
                seen.slow.append(meaning)
            return True
    return False


def _judge(seen: _Seen, version: str | None, expected: list[str] | None) -> tuple[str, list[str]]:
    if seen.plain_experts and not _names_experts(version):
        seen.slow.append(
            "the experts run on CompressedTensorsWNA16MoEMethod, which is the slow one up to vLLM 0.19"
        )
    if seen.slow:
        return "fail", list(seen.slow)
    if seen.converted and not seen.kernels and _kernel_line_came_later(version):
        seen.kernel("Marlin")
    if seen.kernels:
        verdict, reasons = _judge_kernels(seen.kernels, expected)
        if verdict == "pass" and len(expected or []) > 1 and not seen.experts and _names_experts(version):
            return "inconclusive", [*reasons, "no line about the kernel of the experts in the server's log"]
        return verdict, reasons
    if expected == []:
        return "pass", ["not quantized: there is no quantization kernel to check"]
    if seen.unquantized:
        if expected is None:
            return "pass", ["not quantized: the server says quantization=None"]
        return "fail", [
            "the server says quantization=None, but the profile expects {}: this is not the quantized "
            "checkpoint".format(" or ".join(expected))
        ]
    return "inconclusive", [
        (
            "no line about the quantization kernel in the server's log (read for vLLM"
            f" {version or 'of unknown version'})"
        )
    ]


def _judge_kernels(kernels: list[str], expected: list[str] | None) -> tuple[str, list[str]]:
    expected = None if expected is None else list(dict.fromkeys(expected))
    on_cpu = expected is None or any(name in FAST_ON_CPU for name in expected)
    fast = FAST_ON_GPU + ("FlashInfer",) + (FAST_ON_CPU if on_cpu else ())
    slow = [name for name in kernels if name not in fast and not _fast_scaled(name)]
    if slow:
        return "fail", [
            "the server runs {}, which is not a fast kernel here ({} would be)".format(
                " and ".join(slow), ", ".join(expected or FAST_ON_GPU)
            )
        ]
    reasons = ["the server runs " + " and ".join(kernels)]
    if expected and not set(kernels) & set(expected):
        reasons.append(
            "the profile expects {}: also fast, judge by the measured speed".format(" or ".join(expected))
        )
    return "pass", reasons


def _fast_scaled(name: str) -> bool:
    return ("Scaled" in name or "fp4" in name.lower()) and not SLOW_SCALED.search(name)


def _kernel_line_came_later(version: str | None) -> bool:
    """Up to 0.18 the `convertible` line is all there is, and the kernel behind it is always Marlin."""
    numbers = _numbers(version)
    return numbers is not None and numbers <= LAST_WITHOUT_KERNEL_LINE


def _names_experts(version: str | None) -> bool:
    """From 0.20 on the experts' kernel has a line of its own; an unknown version is taken for a new one."""
    numbers = _numbers(version)
    return numbers is None or numbers >= FIRST_WITH_EXPERTS_LINE


def _numbers(version: str | None) -> tuple[int, int] | None:
    found = re.match(r"v?(\d+)\.(\d+)", version or "")
    return (int(found.group(1)), int(found.group(2))) if found else None
