"""Checkpoints without meaning for labs on the stub of vLLM: whole and well formed, but never trained.

They have the trained ones' names, so that one declaration serves both labs.
"""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

from .checkpoints import ORGANISATION, REPOSITORIES
from .keeping import kept
from .layout import cache, recipe_key

WEIGHTS_BYTES = 300_000  # as large as the trained ones'
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "quantization_config": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 32,
        "zero_point": True,
        "version": "gemm",
    },
}


def made() -> dict[str, Path]:
    """Repository name -> directory of each stand-in."""
    key = recipe_key(Path(__file__).read_bytes())
    place = kept(cache() / "checkpoints" / f"stand-ins-{key}", "writing stand-in checkpoints", _write)
    return {f"{ORGANISATION}/{name}": place / name for name in REPOSITORIES}


def _write(place: Path) -> None:
    for name in REPOSITORIES:
        directory = place / name
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(CONFIG, indent=1))
        (directory / "tokenizer.json").write_text("{}")
        (directory / "tokenizer_config.json").write_text("{}")
        (directory / "model.safetensors").write_bytes(_safetensors(name))


def _safetensors(seed: str) -> bytes:
    """One tensor of random bytes: https://github.com/huggingface/safetensors, section Format."""
    header = {"weights": {"dtype": "U8", "shape": [WEIGHTS_BYTES], "data_offsets": [0, WEIGHTS_BYTES]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + random.Random(seed).randbytes(WEIGHTS_BYTES)
