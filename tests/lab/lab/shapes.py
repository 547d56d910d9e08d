"""Checkpoints with real shapes and random weights: speed, memory and kernels are real, answers mean nothing.

What a GPU does with a weight doesn't depend on its value. So every layer has the same random bytes under its
own names, and 19 GB are written as fast as the disk takes them, without torch.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .keeping import kept
from .layout import cache, recipe_key
from .shell import LabError

VOCABULARY, HEAD, GROUP = 151_936, 128, 128
ZEROS = b"\x88"  # two zero points of 8, the middle of four bits
GPTQ_ZEROS = b"\x77"  # the same as GPTQ writes it, one less
# Values of the embedding, drawn once and repeated; a prime number of them, so that no two rows are alike.
DRAWN, SPREAD = 1_000_003, 0.02
CHUNK = 64 << 20


@dataclass(frozen=True)
class Shape:
    """Qwen3's (https://huggingface.co/Qwen/Qwen3-32B-AWQ/blob/main/config.json and its smaller sisters'), or
    of another of the FAMILIES and of no published name, in one of the LAYOUTS.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool  # the output projection is the embedding
    layout: str = "awq"
    family: str = "qwen3"

    def projections(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each projection of a layer."""
        query, key = self.heads * HEAD, self.kv_heads * HEAD
        return {
            "self_attn.q_proj": (self.hidden, query),
            "self_attn.k_proj": (self.hidden, key),
            "self_attn.v_proj": (self.hidden, key),
            "self_attn.o_proj": (query, self.hidden),
            "mlp.gate_proj": (self.hidden, self.inner),
            "mlp.up_proj": (self.hidden, self.inner),
            "mlp.down_proj": (self.inner, self.hidden),
        }

    def norms(self) -> dict[str, int]:
        whole = {"input_layernorm": self.hidden, "post_attention_layernorm": self.hidden}
        on_heads = {"self_attn.q_norm": HEAD, "self_attn.k_norm": HEAD}
        return {**whole, **on_heads} if self.family == "qwen3" else whole

    @property
    def drafts(self) -> bool:
        """Whether a layer of its own drafts the next tokens (multi-token prediction)."""
        return self.family == "mimo"


# What config.json calls them. MiMo's own model_type is in no library: it is Qwen2 but for the layer that
# drafts, and called Qwen3 here, for transformers puts a tokenizer of its own in the place of any Qwen2's.
FAMILIES = {
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "llama": ("LlamaForCausalLM", "llama"),
    "mimo": ("MiMoForCausalLM", "qwen3"),
}


SHAPES = {
    "Qwen/Qwen3-0.6B-AWQ": Shape(1024, 3072, 28, 16, 8, True),
    "Qwen/Qwen3-8B-AWQ": Shape(4096, 12288, 36, 32, 8, False),
    "Qwen/Qwen3-32B-AWQ": Shape(5120, 25600, 64, 64, 8, False),
    # A model that the catalog doesn't know, as it is published in the other ways.
    "acme/House-8B": Shape(4096, 12288, 36, 32, 8, False, "float16", "llama"),
    "acme/House-8B-FP8": Shape(4096, 12288, 36, 32, 8, False, "fp8", "llama"),
    "acme/House-8B-GPTQ-Int4": Shape(4096, 12288, 36, 32, 8, False, "gptq", "llama"),
    # One that drafts its next tokens, as XiaomiMiMo/MiMo-7B does.
    "acme/Draft-8B": Shape(4096, 12288, 36, 32, 8, False, "float16", "mimo"),
}


def made(repository: str) -> Path:
    """The checkpoint's directory in the cache, written first where it is missing."""
    if repository not in SHAPES:
        raise LabError(f"{repository} is none of {', '.join(SHAPES)}")
    name = repository.rpartition("/")[2].lower()
    place = cache() / "checkpoints" / f"{name}-{recipe_key(Path(__file__).read_bytes())}"
    return kept(
        place, f"writing {repository} with random weights", lambda place: write(SHAPES[repository], place)
    )


def retrained(repository: str) -> dict[str, Path]:
    """The checkpoint's files by name, its first layer drawn anew: the next commit of the same model."""
    name = "model-000.safetensors"
    first = {f"model.layers.0.{tensor}": it for tensor, it in _layer(SHAPES[repository], seed=2)}
    before = made(repository)
    place = kept(
        before.parent / f"{before.name}-first-layer-anew",
        f"writing another first layer of {repository}",
        lambda place: _one(place, name, first),
    )
    return {**{path.name: path for path in before.iterdir()}, name: place / name}


def _one(place: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    place.mkdir(parents=True)
    _safetensors(place / name, tensors)


def write(shape: Shape, place: Path) -> None:
    place.mkdir(parents=True)
    layer = dict(_layer(shape))
    files = {
        f"model-{number:03d}.safetensors": {f"model.layers.{number}.{name}": it for name, it in layer.items()}
        for number in range(shape.layers)
    }
    files["model-ends.safetensors"] = dict(_ends(shape))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: _safetensors(place / item[0], item[1]), files.items()))
    index = {name: file for file, tensors in files.items() for name in tensors}
    for name, content in {
        "model.safetensors.index.json": {"metadata": {}, "weight_map": index},
        "config.json": _config(shape),
        **_tokenizer(),
    }.items():
        (place / name).write_text(json.dumps(content, indent=1))


@dataclass(frozen=True)
class Tensor:
    """A tensor by its type, its shape, and the bytes that are repeated until it is full."""

    kind: str
    shape: tuple[int, ...]
    pattern: bytes

    @property
    def size(self) -> int:
        size = {"I32": 4, "F32": 4, "F16": 2, "F8_E4M3": 1}[self.kind]
        for length in self.shape:
            size *= length
        return size

    def content(self) -> Iterator[bytes]:
        whole = self.pattern * max(1, min(CHUNK, self.size) // len(self.pattern))
        full, rest = divmod(self.size, len(whole))
        yield from [whole] * full
        yield whole[:rest]


def _layer(shape: Shape, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    chance = random.Random(seed)
    tensors, _ = LAYOUTS[shape.layout]
    for name, (inputs, outputs) in shape.projections().items():
        for part, tensor in tensors(inputs, outputs, chance).items():
            yield f"{name}.{part}", tensor
    for name, size in shape.norms().items():
        yield f"{name}.weight", _ones(size)
    for name in ("q_proj", "k_proj", "v_proj") if shape.family == "mimo" else ():
        _, outputs = shape.projections()[f"self_attn.{name}"]
        yield f"self_attn.{name}.bias", Tensor("F16", (outputs,), struct.pack("<e", 0))


def _ones(size: int) -> Tensor:
    return Tensor("F16", (size,), struct.pack("<e", 1))


def _drafting(shape: Shape) -> Iterator[tuple[str, Tensor]]:
    """The layer that drafts, by the names of vllm/model_executor/models/mimo_mtp.py."""
    yield from _layer(shape)
    for name in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
        yield f"{name}.weight", _ones(shape.hidden)
    for part, tensor in _float16(2 * shape.hidden, shape.hidden, random.Random(3)).items():
        yield f"input_proj.{part}", tensor


# Layouts: the tensors of a projection, so that about one comes out where about one goes in


def _awq(inputs: int, outputs: int, chance: random.Random) -> dict[str, Tensor]:
    return {
        "qweight": Tensor("I32", (inputs, outputs // 8), chance.randbytes(inputs * outputs // 2)),
        "qzeros": Tensor("I32", (inputs // GROUP, outputs // 8), ZEROS),
        "scales": _group_scales(inputs, outputs),
    }


def _gptq(inputs: int, outputs: int, chance: random.Random) -> dict[str, Tensor]:
    groups = struct.pack(f"<{inputs}i", *(number // GROUP for number in range(inputs)))
    return {
        "qweight": Tensor("I32", (inputs // 8, outputs), chance.randbytes(inputs * outputs // 2)),
        "qzeros": Tensor("I32", (inputs // GROUP, outputs // 8), GPTQ_ZEROS),
        "scales": _group_scales(inputs, outputs),
        "g_idx": Tensor("I32", (inputs,), groups),
    }


def _group_scales(inputs: int, outputs: int) -> Tensor:
    """4.6 is the spread of four random bits."""
    return Tensor("F16", (inputs // GROUP, outputs), struct.pack("<e", 1 / (4.6 * inputs**0.5)))


def _float16(inputs: int, outputs: int, chance: random.Random) -> dict[str, Tensor]:
    values = struct.pack(f"<{DRAWN}e", *(chance.gauss(0, inputs**-0.5) for _ in range(DRAWN)))
    return {"weight": Tensor("F16", (outputs, inputs), values)}


def _fp8(inputs: int, outputs: int, chance: random.Random) -> dict[str, Tensor]:
    scale = Tensor("F32", (1,), struct.pack("<f", inputs**-0.5))
    return {"weight": _eight_bits(inputs, outputs, chance), "weight_scale": scale}


def _eight_bits(inputs: int, outputs: int, chance: random.Random) -> Tensor:
    """Numbers of e4m3 with every sign and fraction and an exponent of -6 to 1: none is NaN, the spread is
    about 1.
    """
    values = bytes(sign | number for sign in (0, 128) for number in range(8, 72))
    drawn = bytes(values[byte % len(values)] for byte in chance.randbytes(DRAWN))
    return Tensor("F8_E4M3", (outputs, inputs), drawn)


Layout = Callable[[int, int, random.Random], dict[str, Tensor]]
LAYOUTS: dict[str, tuple[Layout, dict[str, object] | None]] = {
    "awq": (
        _awq,
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": GROUP,
            "version": "gemm",
            "zero_point": True,
            "modules_to_not_convert": None,
        },
    ),
    "gptq": (
        _gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    ),
    "float16": (_float16, None),
    "fp8": (_fp8, {"quant_method": "fp8", "activation_scheme": "dynamic"}),
}


def _ends(shape: Shape) -> Iterator[tuple[str, Tensor]]:
    chance = random.Random(1)
    values = struct.pack(f"<{DRAWN}e", *(chance.gauss(0, SPREAD) for _ in range(DRAWN)))
    names = ["model.embed_tokens"] if shape.tied else ["model.embed_tokens", "lm_head"]
    for name in names:
        yield f"{name}.weight", Tensor("F16", (VOCABULARY, shape.hidden), values)
    yield "model.norm.weight", _ones(shape.hidden)
    if shape.drafts:
        yield from ((f"model.mtp_layers.0.{name}", tensor) for name, tensor in _drafting(shape))


def _safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """https://github.com/huggingface/safetensors, section Format."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.size
        header[name] = {"dtype": tensor.kind, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.writelines(tensor.content())


def _config(shape: Shape) -> dict[str, object]:
    _, quantization = LAYOUTS[shape.layout]
    architecture, model_type = FAMILIES[shape.family]
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": HEAD,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": shape.tied,
        "rope_theta": 1_000_000,
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float16",
        **({"quantization_config": quantization} if quantization else {}),
        **({"num_nextn_predict_layers": 1} if shape.drafts else {}),
    }


def _tokenizer() -> dict[str, object]:
    """Words t0, t1, ...: one for each entry of the vocabulary, so that lengths in tokens are lengths in
    words.
    """
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "vocab": {f"t{number}": number for number in range(VOCABULARY)},
                "unk_token": "t0",
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "t0",
            "eos_token": "t2",
            "chat_template": "{% for message in messages %}{{ message['content'] }} {% endfor %}",
        },
    }
