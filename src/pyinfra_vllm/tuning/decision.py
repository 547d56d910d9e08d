"""The layers, the operator's own settings and the rules that join them, for one request.

Says nothing of whether the model fits, but for what would end vLLM's start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from pyinfra_vllm import fit
from pyinfra_vllm.catalog import table
from pyinfra_vllm.catalog.conditions import Condition, read
from pyinfra_vllm.catalog.gpus import Gpu
from pyinfra_vllm.catalog.shapes import Shape
from pyinfra_vllm.tuning import declared as operator
from pyinfra_vllm.tuning import measured, security
from pyinfra_vllm.tuning.facts import Facts, of_request
from pyinfra_vllm.tuning.load import load_of
from pyinfra_vllm.tuning.measured import Measured
from pyinfra_vllm.tuning.profile import Profile, apply
from pyinfra_vllm.tuning.request import Request

LAYERS = ("base", "gpu", "model", "objective")
UNMEASURED = ("objective",)  # the layers that a measured profile replaces
# Facts about card, model and version that no flag changes and that have few values.
SETTLED = (
    *("platform", "compute_capability", "vllm", "objective", "model_type", "experts", "hybrid", "vision"),
    *("quantized", "quantization", "quantization_bits", "quantization_group_size", "zero_points"),
    *("known_kernels", "fp8_kv_checkpoint", "weights_counted", "indexed", "uncounted", "latent"),
)
STATES_SHARE = 0.95  # of the blocks predicted for states: the prediction may be 5 % too high
# The values of --linear-backend for 4-bit weights (kernels/linear/__init__.py); any other is warned of and
# passed over.
LINEAR_BACKENDS = {
    "marlin": "Marlin",
    "machete": "Machete",
    "humming": "Humming",
    "triton": "TritonW4A16",
    "conch": "Conch",
    "exllama": "Exllama",
}


@dataclass(frozen=True)
class Decision:
    """A profile with what follows from it. No fit where the model can't be split among the GPUs at all."""

    profile: Profile
    measured: Measured | None
    facts: Facts
    kernels: list[str]
    load: fit.Load | None
    fit: fit.Fit | None


def decide(request: Request) -> Decision:
    """The layers, the operator's own and the rules, for one request.

    Says nothing of whether the model fits.
    """
    shape, card, version = request.shape, request.card, request.version
    profile = Profile()
    fixed = fixed_facts(request)
    facts = Facts(fixed, profile, shape, card)
    known = operator.known_flags(version, request.runtime_flags, profile)
    settled = tuple(fixed[name] for name in SETTLED)
    found = _measured(request, profile)
    instead = found.settings if found else request.instead
    for _, when, entry in _possible("layers.yaml", settled, UNMEASURED if instead else ()):
        if when.holds(facts):
            apply(entry, facts, profile)
    settings = measured.apply(instead, request, known, profile) if instead else {}
    operator.apply_variants(request.variants, facts, profile)
    operator.apply_flags(request.flags, known, version, profile)
    operator.check_names(request.flags, request.environment, shape.name, facts["draft_model"], profile)
    operator.apply_environment(request.environment, version, profile)
    if not instead:
        operator.choose_kernel(profile)
    for names, when, rule in _possible("rules.yaml", settled):
        for name in names:
            if name not in profile.flags and name not in profile.environment:
                break
        else:
            if when.holds(facts):
                apply(rule, facts, profile)
    operator.keep_known(profile, known, version)
    _add_refusals(request, facts)
    kernels = _kernels(shape, card, facts)
    load = load_of(facts, kernels)
    predicted = fit.predict(shape, card, load) if load else None
    if load and predicted and _keeps_to_states(load, predicted, facts):
        load = load_of(facts, kernels)
        predicted = fit.predict(shape, card, load) if load else None
    if found:
        for text in measured.differences(found, settings, facts["length"], profile):
            profile.warn(text)
    return Decision(profile, found, facts, kernels, load, predicted)


def fixed_facts(request: Request) -> dict[str, Any]:
    """The facts that are fixed from the start, those of the request itself among them."""
    return of_request(request.shape, request.card, request.version) | {
        "gpu_count": request.gpu_count,
        "objective": request.objective,
        "max_model_len": request.max_model_len,
        "shutdown_timeout_s": request.shutdown_timeout_s,
        "ready_timeout_s": int(request.ready_timeout_s) if request.ready_timeout_s else None,
    }


def _measured(request: Request, profile: Profile) -> Measured | None:
    """The measured profile for this request, after saying which ones are not for it."""
    if not request.profiles or request.instead:
        return None
    found, unused = measured.valid(request)
    for text in unused:
        profile.warn(text)
    return found


@lru_cache(maxsize=1024)
def _possible(
    name: str, settled: tuple[Any, ...], without: tuple[str, ...] = ()
) -> tuple[tuple[tuple[str, ...], Condition, Mapping[str, Any]], ...]:
    """The entries of a table that may apply for these facts, in order, each with the settings it is about
    and what is left of its condition.

    + without: layers that are left out

    Most are about another card, version or quantization, and one request is resolved many times.
    """
    known = dict(zip(SETTLED, settled, strict=True))
    left = [(when.among(known), entry) for when, entry in _entries(name, without)]
    return tuple((when.needed(), when, entry) for when, entry in left if when)


@cache
def _entries(name: str, without: tuple[str, ...]) -> list[tuple[Condition, Mapping[str, Any]]]:
    rows = table(name)
    layers = [layer for layer in LAYERS if layer not in without]
    entries = [entry for layer in layers for entry in rows[layer]] if isinstance(rows, Mapping) else rows
    return [(read(entry.get("when")), entry) for entry in entries]


def _keeps_to_states(load: fit.Load, predicted: fit.Fit, facts: Facts) -> bool:
    """Emits fewer sequences where they would be more than the blocks for their states; whether it did.

    Each sequence holds a block of the layers with states, and vLLM ends its start where there are fewer
    (config/compilation.py resolve_cudagraph_mode_and_sizes).
    """
    most = predicted.sequences
    if not most or load.max_num_seqs <= most or load.eager or facts.gpu.platform == "cpu":
        return False  # 0: it doesn't fit, which is said
    fewer = int(most * STATES_SHARE)
    fewer = fewer // 8 * 8 or max(1, fewer)
    if "--max-num-seqs" in facts.profile.declared:
        facts.profile.fail(
            f"flags: {{max-num-seqs: {load.max_num_seqs}}} is more than the {most} blocks that the GPU has"
            f" for the states of {facts.shape.name}, and vLLM ends its start: declare at most {fewer}"
        )
        return False
    facts.profile.set(
        "--max-num-seqs",
        fewer,
        f"each sequence holds a block of the layers with states, and the GPU has about {most}: vLLM's own"
        f" default of {load.max_num_seqs} ends the start",
        "vllm/config/compilation.py, 0.32.0; vLLM issue 49064",
    )
    return True


def _add_refusals(request: Request, facts: Facts) -> None:
    if request.card.rejected:
        facts.profile.fail(request.card.rejected)
    warnings, errors = security.check(facts, request.exposed, request.reason)
    for text in warnings:
        facts.profile.warn(text)
    for text in errors:
        facts.profile.fail(text)


def _kernels(shape: Shape, card: Gpu, facts: Facts) -> list[str]:
    """The kernels to expect in the log; [] only for a model that isn't quantized, or beside an error."""
    kind = shape.quantization.kernels if shape.quantization else None
    if kind is None:
        return []
    disabled = str(facts["VLLM_DISABLED_KERNELS"] or "").split(",")
    chosen = LINEAR_BACKENDS.get(facts["--linear-backend"]) if card.platform == "cuda" else None
    found = card.kernels(facts.fixed["vllm"], disabled, chosen, experts=shape.experts > 0, kind=kind)
    if not found and kind != "wna16":
        facts.profile.fail(
            f"{card.title} has no kernel for such weights ({kind}) that is known here: take another card, or"
            " another quantization"
        )
    elif not found and not card.rejected:
        facts.profile.fail(
            f"environment: {{VLLM_DISABLED_KERNELS: {','.join(disabled)}}} disables every fast kernel that "
            f"quantized weights have on {card.title}: take one out"
        )
    return found
