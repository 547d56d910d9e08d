"""The facts that the catalog's `when:` and `$name` may name: GPU, model, runtime and the flags so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pyinfra_vllm import fit
from pyinfra_vllm.catalog import table, versions
from pyinfra_vllm.catalog.contexts import Context, overridden
from pyinfra_vllm.catalog.gpus import GIB, Gpu
from pyinfra_vllm.catalog.shapes import Shape, architecture_of, generates
from pyinfra_vllm.tuning import values
from pyinfra_vllm.tuning.profile import Profile

GPUS_OF_A_HOST = (1, 2, 3, 4, 5, 6, 7, 8)
SPECULATION = {"--spec-method": "method", "--spec-model": "model", "--spec-tokens": "num_speculative_tokens"}
# Channels of heads that FlashInfer has (backends/flashinfer.py get_supported_head_sizes, 0.32.0).
FLASHINFER_HEADS = frozenset((64, 128, 256, 512))
SINKS, IMAGE_PREFIX = "attention sinks", "attention that sees an image's tokens both ways"
IMAGE_PREFIX_FROM = "0.13"  # before, backends weren't asked for it (unsloth issue 3770, December 2025)
TEXT_ALONE_FROM = "0.27"  # before, it made no difference that no image can come (pull request 48796)
BY_LAYER_FROM = "0.16"  # vLLM quantizes each layer as it is loaded (pull request 31914, January 2026)
T = TypeVar("T")
CPU_SEQUENCES = 4  # full-length requests that a CPU host's cache holds unless the operator says otherwise


def of_request(shape: Shape, gpu: Gpu, runtime_version: str) -> dict[str, Any]:
    """The facts that are fixed from the start. None stands for "has none"."""
    family = shape.family
    on_cpu = gpu.platform == "cpu"
    return {
        "platform": gpu.platform,
        "gpu": gpu.title,
        "compute_capability": None if on_cpu else gpu.compute_capability,
        "memory_gib": None if on_cpu else round(gpu.usable_bytes / GIB, 1),
        "vllm": versions.parse(runtime_version),
        "vllm_text": runtime_version,
        "model": shape.name,
        "model_type": shape.model_type,
        "family": family.get("name"),
        "minimum_version": family.get("minimum_version", "0.0"),
        "qk_norm": bool(family.get("qk_norm", shape.model_type.startswith("qwen3"))),
        "reasoning": bool(family.get("reasoning", False)),
        "reasoning_parser": family.get("reasoning_parser"),
        "tool_call_parser": family.get("tool_call_parser"),
        "quantized": shape.quantization is not None,
        "quantization": shape.quantization.method if shape.quantization else None,
        "quantization_form": f" ({shape.quantization.form})"
        if shape.quantization and shape.quantization.form
        else "",
        "quantization_group_size": shape.quantization.group_size if shape.quantization else None,
        "zero_points": shape.quantization.zero_point if shape.quantization else None,
        "quantization_bits": shape.quantization.bits if shape.quantization else None,
        "fp8_kv_checkpoint": bool(shape.quantization and shape.quantization.fp8_kv_cache),
        "known_kernels": shape.quantization.kernels if shape.quantization else "none needed",
        "heads": shape.heads,
        "kv_heads": kv_heads(shape),
        "intermediate": shape.intermediate,
        "experts": shape.experts,
        "quantization_groups": quantization_groups(shape),
        "expert_groups": expert_groups(shape),
        "mtp_layers": shape.mtp_layers,
        "hybrid": shape.hybrid,
        "indexed": any(cache.index_bytes for cache in shape.caches),
        "uncounted": ", ".join(shape.uncounted) or None,
        "latent": shape.latent_kv > 0,
        "vision": shape.vision,
        "weights_counted": bool(shape.weights_bytes),
    }


class Facts(Mapping[str, Any]):
    """The fixed facts, a variant's parameters, derived values, and the flags and variables so far.

    Flags are called `--name` and variables `NAME`; both are told in the one spelling of `values.meaning`.
    """

    def __init__(self, fixed: Mapping[str, Any], profile: Profile, shape: Shape, gpu: Gpu) -> None:
        self.fixed = dict(fixed)
        self.profile = profile
        self.shape = shape
        self.gpu = gpu
        self._derived: dict[Callable[[Facts], Any], Any] = {}  # after so many changes to the profile:
        self._changes = profile.changes

    def __getitem__(self, name: str) -> Any:
        if name.startswith("--"):
            chosen = self.profile.flags.get(name)
            return values.meaning(name, chosen.value) if chosen else None
        derive = DERIVED.get(name)
        if derive:
            return self.once(derive)
        if name in self.fixed:
            return self.fixed[name]
        if not name.isupper():
            raise KeyError(name)
        setting = self.profile.environment.get(name)
        return values.meaning(name, setting.value) if setting else None

    def once(self, derive: Callable[[Facts], T]) -> T:
        """The result of `derive(self)`, kept until a flag or variable changes: rules ask many times."""
        if self._changes != self.profile.changes:
            self._derived.clear()
            self._changes = self.profile.changes
        if derive not in self._derived:
            self._derived[derive] = derive(self)
        found: T = self._derived[derive]
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.fixed or name in DERIVED

    def __iter__(self) -> Iterator[str]:
        return iter([*self.fixed, *DERIVED])

    def __len__(self) -> int:
        return len(self.fixed) + len(DERIVED)

    def given(self, parameters: Mapping[str, Any]) -> Facts:
        """The same with a variant's parameters; one that hides another fact is also `<name>_parameter`."""
        longer = {f"{name}_parameter": value for name, value in parameters.items()}
        model = self.fixed["model"]
        return Facts(
            {**self.fixed, **parameters, "model": model, **longer}, self.profile, self.shape, self.gpu
        )


def quantization_groups(shape: Shape) -> int:
    """The number that a tensor-parallel size must divide for whole groups on every GPU; 0 without groups."""
    wide = _undivided(shape)
    if not wide:
        return 0
    channels = [shape.heads * (shape.value_dim or shape.head_dim)]
    if not shape.experts:
        channels.append(shape.intermediate)
    return math.gcd(*(_whole(count, wide) for count in channels))


def _whole(channels: int, wide: int) -> int:
    """How many groups so many channels are; 1, which no GPUs share, where the last one isn't whole."""
    return 1 if channels % wide else channels // wide


def expert_groups(shape: Shape) -> int:
    """The same for the experts of a mixture; 0 for a dense model."""
    wide = _undivided(shape)
    return _whole(shape.expert_intermediate, wide) if wide and shape.experts else 0


def _undivided(shape: Shape) -> int:
    """The channels that one scale is of, in a group or a block, which one GPU must hold whole; 0 for none."""
    quantization = shape.quantization
    return max(quantization.group_size, quantization.block, 0) if quantization else 0


def splits(shape: Shape, count: int, expert_parallel: bool = False) -> bool:
    """Whether so many GPUs can share a model evenly; expert parallelism deals out whole experts."""
    numbers = [shape.heads, quantization_groups(shape)]
    numbers.append(0 if expert_parallel else expert_groups(shape))
    numbers.append(0 if shape.experts else shape.intermediate)
    heads = kv_heads(shape)
    return all(number % count == 0 for number in numbers) and (heads % count == 0 or count % heads == 0)


def kv_heads(shape: Shape) -> int:
    """KV heads that tensor parallelism shares; a latent (MLA) is one that every GPU has."""
    return 1 if shape.latent_kv else shape.kv_heads


def tensor_parallel_choices(shape: Shape) -> list[int]:
    """The GPU counts of a host that split this model evenly."""
    return [count for count in GPUS_OF_A_HOST if splits(shape, count)]


def _tensor_parallel_size(facts: Facts) -> int:
    """The declared one, or the GPUs that the other kinds of parallelism leave to each of their ranks."""
    declared = facts["--tensor-parallel-size"]
    return int(declared or max(1, facts.fixed["gpu_count"] // facts.once(_other_ranks)))


def pipeline_parallel_size(facts: Facts) -> int:
    return int(facts["--pipeline-parallel-size"] or 1)


def _gpus_needed(facts: Facts) -> int:
    """Processes with a GPU of their own (vllm/config/parallel.py), less those of data-parallel ranks
    elsewhere.
    """
    return facts.once(_tensor_parallel_size) * facts.once(_other_ranks)


def _other_ranks(facts: Facts) -> int:
    ranks = facts["--data-parallel-size-local"] or facts["--data-parallel-size"] or 1
    prefill = int(facts["--prefill-context-parallel-size"] or 1)
    return facts.once(pipeline_parallel_size) * int(ranks) * prefill


def configured(facts: Facts, flag: str) -> dict[str, Any]:
    """The map of a flag such as --speculative-config."""
    chosen = facts.profile.flags.get(flag)
    if chosen is None or not isinstance(chosen.value, Mapping):
        return {}  # none, or the level that --compilation-config was up to 0.11
    return {str(key).replace("-", "_"): value for key, value in chosen.value.items()}


def speculation(facts: Facts) -> dict[str, Any]:
    """--speculative-config with its shorthands (vllm/engine/arg_utils.py create_speculative_config)."""
    if not any(name.startswith("--spec") for name in facts.profile.flags):
        return {}  # as nearly always, and every resolution asks several times
    short = {key: facts[flag] for flag, key in SPECULATION.items()}
    return configured(facts, "--speculative-config") | {key: value for key, value in short.items() if value}


def _twice_speculated(facts: Facts) -> str | None:
    """The shorthand whose key --speculative-config has too."""
    if not facts.once(speculation):
        return None
    whole = configured(facts, "--speculative-config")
    return next((flag for flag, key in SPECULATION.items() if facts[flag] and key in whole), None)


def _speculative_tokens(facts: Facts) -> int:
    return _count(facts.once(speculation).get("num_speculative_tokens")) or 0


def _draft_layers(facts: Facts) -> int:
    """Layers of multi-token prediction that run: each has full attention (models/qwen3_5_mtp.py)."""
    return facts.shape.mtp_layers if str(facts.once(speculation).get("method")).endswith("mtp") else 0


def _speculative_method(facts: Facts) -> str | None:
    method = facts.once(speculation).get("method")
    return method if isinstance(method, str) else None


def _own_mtp(facts: Facts) -> bool:
    """Whether the model itself is to predict several tokens: by no model of another repository."""
    return str(facts.once(_speculative_method)).endswith("mtp") and facts.once(_draft_model) is None


def _special_attention(facts: Facts) -> str | None:
    """The kind of attention that a model has and not every backend; None for the usual one."""
    if facts.shape.sinks:
        return SINKS
    version = facts.fixed["vllm"]
    if not facts.shape.image_prefix or versions.below(version, IMAGE_PREFIX_FROM):
        return None
    alone = _text_alone(facts) and not versions.below(version, TEXT_ALONE_FROM)
    return None if alone else IMAGE_PREFIX


def _text_alone(facts: Facts) -> bool:
    """Whether no image can come (config/model.py _supports_multimodal_for_mm_prefix, 0.32.0)."""
    limits = configured(facts, "--limit-mm-per-prompt")
    return facts["--language-model-only"] is True or (bool(limits) and not any(limits.values()))


def _flashinfer_lacks(facts: Facts) -> str | None:
    """The property of a model for which vLLM refuses FlashInfer on this card; None where it takes it."""
    shape, capability = facts.shape, facts.fixed["compute_capability"]
    if shape.latent_kv or capability is None:
        return None  # FlashInfer for a latent is another backend
    special = facts.once(_special_attention)
    if special and (special != SINKS or versions.below(versions.parse(capability), "9.0")):
        return special
    lacking = sorted(shape.head_sizes - FLASHINFER_HEADS)
    return f"heads of {lacking[0]} channels" if lacking else None


def _turboquant_lacks(facts: Facts) -> str | None:
    """The property of a model for which vLLM refuses TurboQuant; None where it takes it."""
    if facts.shape.latent_kv:
        return "latent attention (MLA)"
    windows = any(cache.window or cache.chunk for cache in facts.shape.caches)
    return facts.once(_special_attention) or ("sliding windows" if windows else None)


def _draft_model(facts: Facts) -> str | None:
    model = facts.once(speculation).get("model")
    return model if isinstance(model, str) else None


def _graph_limit(facts: Facts) -> int | None:
    return _count(facts["--max-cudagraph-capture-size"]) or _count(
        configured(facts, "--compilation-config").get("max_cudagraph_capture_size")
    )


def _largest_graph(facts: Facts) -> int | None:
    """The largest of the CUDA graph sizes that are listed, of those that a step can have (config/vllm.py)."""
    listed = (
        facts["--cudagraph-capture-sizes"]
        or configured(facts, "--compilation-config").get("cudagraph_capture_sizes")
        or facts["--cuda-graph-sizes"]
    )
    sizes = map(_count, listed if isinstance(listed, list | tuple) else [listed])
    most = facts.once(_batched_tokens)
    return max((size for size in sizes if size and size <= most), default=None)


def _captured_graph(facts: Facts) -> int | None:
    """The largest captured size up to the limit if none are listed (config/vllm.py): by 8, then by 16."""
    limit = facts.once(_graph_limit)
    if limit is None or facts.once(_largest_graph) or limit == facts.once(_batched_tokens):
        return limit
    if limit < 8:
        return max(size for size in (1, 2, 4) if size <= limit)
    return limit // 8 * 8 if limit < 256 else limit // 16 * 16


def _graph_size(facts: Facts) -> int:
    """A graph size that agrees with the drafted tokens: full batches, or the multiple below the declared."""
    step = facts.once(_decode_step)
    return facts.once(_decode_tokens) or max(1, (facts.once(_graph_limit) or step) // step) * step


def batch_defaults(facts: Facts) -> Mapping[str, int]:
    """VLLM's own batch sizes for a device: the first row of runtimes.yaml `batch` that applies.

    --performance-mode throughput doubles both (engine/arg_utils.py
    _set_default_max_num_seqs_and_batched_tokens_args).
    """
    factor = 2 if facts["--performance-mode"] == "throughput" else 1
    card = facts.gpu
    for row in table("runtimes.yaml")["batch"]:
        named = row.get("not_name")
        if (
            row.get("platform", card.platform) == card.platform
            and card.usable_bytes >= row.get("memory_gib_at_least", 0) * GIB
            and not (named and named in card.title.lower())
            and not ("from" in row and versions.below(facts.fixed["vllm"], row["from"]))
        ):
            return {key: row[key] * factor for key in ("max_num_batched_tokens", "max_num_seqs")}
    raise LookupError("runtimes.yaml: the last row of `batch` must apply to everything")


def _batched_tokens(facts: Facts) -> int:
    """Tokens of one step: declared, or vLLM's default, which without chunked prefill holds a whole prompt."""
    declared: int | None = facts["--max-num-batched-tokens"]
    if declared:
        return declared
    whole = facts.once(_length) if facts["--enable-chunked-prefill"] is False else None
    return max(facts.once(batch_defaults)["max_num_batched_tokens"], whole or 0)


def _architecture(facts: Facts) -> str | None:
    """The class that --hf-overrides names, or config.json."""
    return architecture_of(configured(facts, "--hf-overrides")) or facts.shape.architecture or None


def _context(facts: Facts) -> Context:
    """The context of the config.json, with what --hf-overrides puts over it."""
    known = facts.shape.contexts
    overrides = configured(facts, "--hf-overrides")
    if overrides:
        known = overridden(known, overrides, facts.shape.name)
    return known.of(facts.fixed["vllm"])


def _max_position(facts: Facts) -> int | None:
    return facts.once(_context).longest or None


def _length(facts: Facts) -> int | None:
    default = facts.once(_context).default
    length: int | None = facts.fixed["max_model_len"] or default or None
    return length


def _count(value: Any) -> int | None:
    """A number of something in a map that nobody has checked; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _decode_step(facts: Facts) -> int:
    return 1 + facts.once(_speculative_tokens)


def _decode_tokens(facts: Facts) -> int | None:
    sequences = facts["--max-num-seqs"]
    return int(sequences) * facts.once(_decode_step) if sequences else None


def _spare_gib(facts: Facts) -> float | None:
    """GiB of a GPU's share beside the weights and the CUDA context, before anything else is counted."""
    share = facts["--gpu-memory-utilization"]
    if share is None:
        return None
    return round((facts.gpu.usable_bytes * float(share) - facts.once(_weights_bytes)) / GIB, 1)


def _beside_weights(facts: Facts) -> int:
    """Bytes of a GPU beside the weights, whatever share of it vLLM may take; 0 where they aren't known."""
    if size_is_unknown(facts):
        return 0
    return facts.gpu.usable_bytes - facts.once(_weights_bytes)


def _weights_bytes(facts: Facts) -> int:
    """Bytes of the weights on one GPU, before anything is known of a kernel that repacks them."""
    load = fit.Load(
        *(facts.once(_tensor_parallel_size), 0, 1.0, 1, 1),
        pipeline_parallel_size=facts.once(pipeline_parallel_size),
        data_parallel_size=int(facts["--data-parallel-size"] or 1),
        offload_bytes=int(float(facts["--cpu-offload-gb"] or 0) * GIB),
        linear_bytes=facts.once(linear_bytes),
    )
    return fit.weights_bytes(facts.shape, load)


def linear_bytes(facts: Facts) -> float:
    """Bytes of a linear layer's value that is quantized while it is loaded; 0 where none is, where the bytes
    aren't known, and where vLLM holds all of 16 bits until everything is loaded.
    """
    if facts.shape.quantization or versions.below(facts.fixed["vllm"], BY_LAYER_FROM):
        return 0.0
    return fit.ONLINE.get(str(facts["--quantization"]), 0.0)


def size_is_unknown(facts: Facts) -> bool:
    """Whether the weights are quantized while they are loaded to a size that isn't known here."""
    method = facts["--quantization"]
    return facts.shape.quantization is None and method is not None and method not in fit.ONLINE


def _cpu_kv_cache_gib(facts: Facts) -> int:
    tokens = facts.once(_length) or 0
    request = fit.layout(facts.shape, fit.Load(1, tokens, 1.0, 1, 1)).request_bytes(tokens)
    return max(1, math.ceil(CPU_SEQUENCES * request / GIB))


def _choices(facts: Facts) -> str:
    numbers = [str(number) for number in tensor_parallel_choices(facts.shape)]
    return " or ".join(filter(None, (", ".join(numbers[:-1]), numbers[-1])))


DERIVED: dict[str, Callable[[Facts], Any]] = {
    "architecture": _architecture,
    "generates": lambda facts: generates(facts.once(_architecture) or ""),
    "length": _length,
    "max_position": _max_position,
    "batched_tokens": _batched_tokens,
    "gpus_needed": _gpus_needed,
    "twice_speculated": _twice_speculated,
    "draft_layers": _draft_layers,
    "draft_model": _draft_model,
    "speculative_method": _speculative_method,
    "own_mtp": _own_mtp,
    "special_attention": _special_attention,
    "flashinfer_lacks": _flashinfer_lacks,
    "turboquant_lacks": _turboquant_lacks,
    "graph_limit": _graph_limit,
    "largest_graph": _largest_graph,
    "captured_graph": _captured_graph,
    "graph_size": _graph_size,
    "tensor_parallel_size": _tensor_parallel_size,
    "tensor_parallel_choices": _choices,
    "speculative_tokens": _speculative_tokens,
    "decode_step": _decode_step,
    "decode_tokens": _decode_tokens,
    "spare_gib": _spare_gib,
    "beside_weights": _beside_weights,
    "cpu_kv_cache_gib": _cpu_kv_cache_gib,
}
