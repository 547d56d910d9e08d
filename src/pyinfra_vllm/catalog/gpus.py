"""GPU models: finding one by the name that nvidia-smi prints, and what its architecture can do.

Data: gpus.yaml.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from pyinfra_vllm.catalog import table, versions
from pyinfra_vllm.errors import DeclarationError

MIB = 1024**2
GIB = 1024**3
USABLE_SHARE = 0.985  # of nvidia-smi's memory, for a card that isn't in the table (its cards: 0.97 to 0.996)
MEMORY_TOLERANCE_MIB = 2048  # the same name with another memory size is another card
NAME_TOLERANCE = 0.1  # names round, and by thousands: a card of 22.5 GiB is called 24 GB
SIZE = re.compile(r"([0-9]{1,7}(?:\.[0-9]{1,3})?) ?(GiB|MiB)")
MOST_MEMORY_MIB = 4 * 1024**2  # 4 TiB: beyond any card
# After a card's name: another one, or a part of one.
OTHER_CARDS = ("laptop", "mobile", "max", "ada", "mig", "ti", "super", "v2")
VGPU_PROFILE = re.compile(r"(^|\s)\d{1,3}[abcq]$")  # a part by vGPU: `NVIDIA L40S-12C`
OTHER_MAKERS = re.compile(
    r"\b(amd|radeon|instinct|rocm|mi\d{2,3}[a-z]?|gfx\d+|intel|arc|gaudi|xe|tpu|trainium|inferentia|ascend|apple)\b"
)
TOO_OLD = re.compile(r"\b(gtx (9|10)\d\d|gtx titan|titan (x|xp|v)|[kmp]\d{1,3}|quadro [kmpg]v?\d+)\b")


@dataclass(frozen=True)
class Gpu:
    """One kind of accelerator. `key` is "cpu" for a host without any."""

    key: str
    title: str
    compute_capability: str
    memory_mib: int = 0
    usable_bytes: int = 0
    bandwidth_gb_s: float | None = None
    nvlink: str = "none"

    @property
    def platform(self) -> str:
        return "cpu" if self.key == "cpu" else "cuda"

    @property
    def architecture(self) -> Mapping[str, Any]:
        """The row of gpus.yaml `architectures`; empty for an unknown compute capability."""
        row: Mapping[str, Any] = table("gpus.yaml")["architectures"].get(self.compute_capability, {})
        return row

    @property
    def rejected(self) -> str | None:
        """Why nothing can be served on it, or None."""
        if not self.architecture:
            return (
                f"{self.title}: compute capability {self.compute_capability} is not in the catalog's"
                " architectures"
            )
        reason: str | None = self.architecture.get("rejected")
        return reason

    def kernels(
        self,
        version: versions.Version,
        disabled: Collection[str] = (),
        chosen: str | None = None,
        experts: bool = False,
        kind: str = "wna16",
    ) -> list[str]:
        """The kernels that a quantized model takes: for its linear layers and then, if it has them, experts.

        Without any fast kernel for the linear layers the answer is []: the experts' alone would hide that.

        + disabled: class names as in VLLM_DISABLED_KERNELS, such as MacheteLinearKernel; they spare experts
        + chosen: the one that --linear-backend names
        + kind: of the weights, see Quantization; for 8 bits on both sides the experts' isn't known
        """
        if kind != "wna16":
            rows = table("gpus.yaml")["scaled_kernels"][kind]
            found = next((row["kernel"] for row in rows if self.compute_capability in row["for"]), None)
            return [found] if found else []
        if "kernels" not in self.architecture:
            return []
        linear = versions.first(self.architecture["kernels"], version)["kernels"]
        allowed = [name for name in linear if f"{name}LinearKernel" not in disabled]
        if chosen:
            allowed = [chosen] if f"{chosen}LinearKernel" not in disabled else []
        if not allowed or not experts:
            return allowed[:1]
        return [allowed[0], versions.first(self.architecture["moe"], version)["kernels"][0]]


CPU = Gpu(key="cpu", title="CPU", compute_capability="cpu")


def find(
    name: str,
    compute_capability: str | None = None,
    memory_mib: int | None = None,
    own: Iterable[Gpu] = (),
) -> Gpu:
    """The GPU that nvidia-smi calls `name`; "cpu" for none.

    The operator's own cards win over the table. A card in neither is described from its compute capability
    and memory where both are given. Raises DeclarationError with the nearest known names.
    """
    wanted = normal(name)
    if wanted == "cpu":
        return CPU
    refuse_other_makers(name)
    for card in own:
        if normal(card.title) == wanted and _same_memory(card.memory_mib, memory_mib):
            return _with_memory(card, memory_mib)
    rows: dict[str, Any] = table("gpus.yaml")["gpus"]
    for key in _matching(wanted, memory_mib, name):
        if _same_memory(rows[key]["memory_mib"], memory_mib):
            return _with_memory(_listed(key), memory_mib)
    if compute_capability and memory_mib:
        return described(name, compute_capability, memory_mib)
    raise DeclarationError(_unknown(name, wanted, rows))


def refuse_other_makers(name: str) -> None:
    """Raises DeclarationError for the name of a card that isn't NVIDIA's."""
    if OTHER_MAKERS.search(normal(name)):
        raise DeclarationError(
            f"GPU {name!r} is not NVIDIA's: only NVIDIA GPUs (CUDA) and the CPU (gpu: cpu) are supported"
        )


def described(
    name: str, compute_capability: str, memory_mib: int, bandwidth_gb_s: float | None = None
) -> Gpu:
    """A card that isn't in the table; the usual share of its memory counts as usable."""
    usable = int(memory_mib * MIB * USABLE_SHARE)
    key = normal(name).replace(" ", "-")
    return Gpu(key, name, compute_capability, memory_mib, usable, bandwidth_gb_s)


def memory_of(text: str) -> int:
    """MiB of a size such as "48GiB" or "49140MiB". Raises ValueError that says what is allowed."""
    found = SIZE.fullmatch(text)
    mib = int(float(found[1]) * (1024 if found[2] == "GiB" else 1)) if found else 0
    if not 1024 <= mib <= MOST_MEMORY_MIB:
        raise ValueError('must be the memory that nvidia-smi prints, such as "48GiB" or "49140MiB"')
    return mib


def capability_of(text: str) -> str:
    """A compute capability that the table has, such as "8.9". Raises ValueError that says which it has."""
    known = [name for name in table("gpus.yaml")["architectures"] if name != "cpu"]
    if text not in known:
        raise ValueError(
            "must be a compute capability that is known here, as `nvidia-smi --query-gpu=compute_cap"
            f" --format=csv` prints it: one of {', '.join(known)}"
        )
    return text


def _matching(wanted: str, memory_mib: int | None, name: str) -> list[str]:
    """The cards that a name may mean, the one with the longest entry first; without "RTX" where that alone is
    missing. Raises DeclarationError where only the memory could tell which of several it is.
    """
    found = _named(wanted) or _named(f"rtx {wanted}")
    if not memory_mib:
        best = [key for length, key in found if length == found[0][0]] or _beginning(wanted)
        if len(best) > 1:
            rows = table("gpus.yaml")["gpus"]
            titles = ", ".join(sorted(rows[key]["title"] for key in best))
            raise DeclarationError(f"GPU {name!r} is the name of several cards: declare one of {titles}")
        return best
    return [key for _, key in found]


@lru_cache(maxsize=1024)
def _named(wanted: str) -> list[tuple[int, str]]:
    """Length of the entry and key of every card whose entry a name is or begins with, longest first."""
    rows: dict[str, Any] = table("gpus.yaml")["gpus"]
    return sorted(
        {
            (len(pattern), key)
            for pattern, key in _entries()
            if wanted == pattern
            or (wanted.startswith(pattern + " ") and _same_card(wanted.removeprefix(pattern), rows[key]))
        },
        reverse=True,
    )


@cache
def _entries() -> tuple[tuple[str, str], ...]:
    """Every name that a card is found by, with its key."""
    return tuple(
        (pattern, key)
        for key, row in table("gpus.yaml")["gpus"].items()
        for pattern in (*row["match"], normal(key), normal(row["title"]))
    )


def _beginning(wanted: str) -> list[str]:
    """Every card whose name goes on after the one that was asked for."""
    rows: dict[str, Any] = table("gpus.yaml")["gpus"]
    return [
        key for key, row in rows.items() if any(pattern.startswith(f"{wanted} ") for pattern in row["match"])
    ]


def _same_card(rest: str, row: Mapping[str, Any]) -> bool:
    """Whether the words after a card's name leave it that card: no laptop's, no slice, no other memory."""
    if VGPU_PROFILE.search(rest):
        return False
    sizes = [int(size) for size in re.findall(r"(?:^|[ .])(\d{1,4}) ?gb\b", rest)]
    gib = row["memory_mib"] / 1024
    return not any(word in OTHER_CARDS for word in rest.split()) and all(
        abs(size - gib) <= NAME_TOLERANCE * gib for size in sizes
    )


@lru_cache(maxsize=1024)
def normal(name: str) -> str:
    """A GPU name without case, maker, series and punctuation: `NVIDIA A100-SXM4-80GB` is `a100 sxm4 80gb`."""
    text = re.sub(r"[-_/]+", " ", name.lower())
    text = re.sub(r"\b(rtx|gtx)(?=[a-z]?\d)", r"\1 ", text)
    text = re.sub(r"\b(\d{4})(?=(ti|d)\b)", r"\1 ", text)
    words = re.sub(r"\b(\d{1,4}) ?gi?b?\b", r"\1gb", text).split()
    return " ".join(word for word in words if word not in ("nvidia", "geforce", "tesla"))


def _listed(key: str) -> Gpu:
    row = table("gpus.yaml")["gpus"][key]
    return Gpu(
        key=key,
        title=row["title"],
        compute_capability=row["compute_capability"],
        memory_mib=row["memory_mib"],
        usable_bytes=int(row["usable_gib"] * GIB),
        bandwidth_gb_s=row["bandwidth_gb_s"],
        nvlink=row["nvlink"],
    )


def _same_memory(memory_mib: int, told: int | None) -> bool:
    return not told or abs(told - memory_mib) <= MEMORY_TOLERANCE_MIB


def _with_memory(card: Gpu, told: int | None) -> Gpu:
    """The card with the memory that the host tells, where it does."""
    missing = card.memory_mib - told if told else 0
    if not missing:
        return card
    return replace(card, memory_mib=card.memory_mib - missing, usable_bytes=card.usable_bytes - missing * MIB)


def _unknown(name: str, wanted: str, rows: Mapping[str, Any]) -> str:
    if TOO_OLD.search(wanted):
        return f"GPU {name!r} is older than Turing: vLLM's kernels need compute capability 7.5, as a T4 has"
    for row in table("gpus.yaml")["architectures"].values():
        if "rejected" in row and row["name"].lower() in wanted.split():  # Jetson's boards
            return f"GPU {name!r}: {row['rejected']}"
    patterns = {pattern: row["title"] for row in rows.values() for pattern in row["match"]}
    near = difflib.get_close_matches(wanted, patterns, n=3, cutoff=0.75)
    nearest = ", ".join(dict.fromkeys(patterns[pattern] for pattern in near))
    return (
        f"GPU {name!r} is not in the catalog{f'. Nearest: {nearest}' if nearest else ''}. Use the name that"
        " `nvidia-smi --query-gpu=name --format=csv` prints, or describe the card in"
        " cards.yaml (docs/tuning.md)"
    )
