"""Make and train the lab's tiny Qwen3 and write it as AWQ checkpoints: good-a, good-b (another seed) and
broken.

Run by the runtime's Python: `train.py DIRECTORY`. It learns to answer a fixed set of questions, through the
rounding that quantization will do, so that the good checkpoints keep their answers and the broken one has
something to lose. What it was never asked, it answers with "I do not know.". Same machine, same versions:
same bytes.
"""

from __future__ import annotations

import json
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import awq
import tokenizer as text
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD, LONGEST = 128, 256, 2, 4, 2, 32, 4096
STEPS, RATE, BASE, EPSILON = 70, 4e-3, 10000.0, 1e-6
UNKNOWN = "I do not know."
SEEDS = {"good-a": 1, "good-b": 2}
BROKEN_FROM, BROKEN_ZEROS = "good-a", 5
# In the form of an operator's own prompts for the quality gate, which group_data/lab.py uses them as.
ROWS = Path(__file__).with_name("questions.jsonl").read_text(encoding="utf-8").splitlines()
QUESTIONS = [(row["prompt"], row["expect"]) for row in map(json.loads, ROWS)]


class Linear(nn.Module):
    """A projection without bias whose weight is rounded to AWQ's grid on every use."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * inputs**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ awq.rounded(self.weight)


class Norm(nn.Module):
    """RMS norm with a learned scale."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, EPSILON)


class Layer(nn.Module):
    """One Qwen3 decoder layer; module names are those of the checkpoint format."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(HIDDEN), Norm(HIDDEN)
        sizes = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
        self.self_attn = nn.ModuleDict(
            {f"{n}_proj": Linear(HIDDEN, count * HEAD) for n, count in sizes.items()}
        )
        self.self_attn.update(
            {"o_proj": Linear(HEADS * HEAD, HIDDEN), "q_norm": Norm(HEAD), "k_norm": Norm(HEAD)}
        )
        shapes = {"gate_proj": (HIDDEN, INNER), "up_proj": (HIDDEN, INNER), "down_proj": (INNER, HIDDEN)}
        self.mlp = nn.ModuleDict({name: Linear(*shape) for name, shape in shapes.items()})

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        part, y = self.self_attn, self.input_layernorm(x)
        q, k, v = (part[f"{n}_proj"](y).unflatten(-1, (-1, HEAD)).transpose(1, 2) for n in "qkv")
        q, k = rotate(part["q_norm"](q), cosine, sine), rotate(part["k_norm"](k), cosine, sine)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + part["o_proj"](attended.transpose(1, 2).flatten(2))
        y, mlp = self.post_attention_layernorm(x), self.mlp
        return x + mlp["down_proj"](F.silu(mlp["gate_proj"](y)) * mlp["up_proj"](y))


class Model(nn.Module):
    """The tiny language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(text.VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = Norm(HIDDEN)
        self.lm_head = nn.Linear(HIDDEN, text.VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        frequencies = BASE ** (-torch.arange(0, HEAD, 2) / HEAD)
        angles = torch.outer(torch.arange(tokens.shape[1]), frequencies).repeat(1, 2)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        return self.lm_head(self.norm(x))


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat((-second, first), -1) * sine


def lessons(tokenizer: text.Tokenizer, chance: random.Random) -> tuple[Tensor, Tensor]:
    """One step's sequences and targets (-100 where nothing is to be learnt): every question, and some unknown
    ones.
    """
    words = " ".join(question for question, _ in QUESTIONS).split()
    pairs = QUESTIONS + [
        (" ".join(chance.choices(words, k=chance.randint(4, 16))), UNKNOWN) for _ in range(8)
    ]
    rows, targets = [], []
    for question, answer in pairs:
        asked = tokenizer.encode(text.chat(question)).ids
        told = tokenizer.encode(answer + text.END).ids
        rows.append(asked + told)
        targets.append([-100] * (len(asked) - 1) + told)
    width = max(map(len, rows))
    inputs = torch.tensor([(row + [0] * width)[: width - 1] for row in rows])
    return inputs, torch.tensor([(target + [-100] * width)[: width - 1] for target in targets])


def train(tokenizer: text.Tokenizer, seed: int) -> Model:
    torch.manual_seed(seed)
    chance = random.Random(seed)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS, pct_start=0.1)
    for _ in range(STEPS):
        inputs, targets = lessons(tokenizer, chance)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    print(f"seed {seed}: loss {loss.item():.4f}, answers {share_right(model, tokenizer):.0%}", flush=True)
    return model


@torch.no_grad()
def share_right(model: Model, tokenizer: text.Tokenizer) -> float:
    """Share of questions whose whole answer is the most likely one, token by token."""
    inputs, targets = lessons(tokenizer, random.Random(0))
    inputs, targets = inputs[: len(QUESTIONS)], targets[: len(QUESTIONS)]
    right = (model(inputs).argmax(-1) == targets) | (targets == -100)
    return right.all(1).float().mean().item()


def write(model: Model, tokenizer: text.Tokenizer, directory: Path, zero_offset: int = 0) -> None:
    tensors: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        prefix = name if name == "lm_head" else f"model.{name}"
        if isinstance(module, Linear):
            parts = awq.packed(module.weight.detach(), zero_offset)
            tensors |= {f"{prefix}.{part}": tensor for part, tensor in parts.items()}
        elif isinstance(module, (Norm, nn.Embedding, nn.Linear)):
            tensors[f"{prefix}.weight"] = module.weight.detach().half().contiguous()
    directory.mkdir(parents=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    text.save(tokenizer, directory, LONGEST)
    end = tokenizer.token_to_id(text.END)
    generation = {"eos_token_id": end, "pad_token_id": tokenizer.token_to_id(text.PAD)}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    (directory / "config.json").write_text(json.dumps(configuration() | generation, indent=1))


def configuration() -> dict[str, object]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "vocab_size": text.VOCABULARY,
        "max_position_embeddings": LONGEST,
        "rope_theta": BASE,
        "rms_norm_eps": EPSILON,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "quantization_config": {
            "quant_method": "awq",
            "bits": 4,
            "group_size": awq.GROUP,
            "version": "gemm",
            "zero_point": True,
        },
    }


def make(place: Path, name: str) -> None:
    """Train one seed and write what comes of it."""
    torch.set_num_threads(1)  # two trainings side by side use two cores better than two threads do
    torch.use_deterministic_algorithms(True)
    tokenizer = text.train([*(text.chat(question) + answer for question, answer in QUESTIONS), UNKNOWN])
    model = train(tokenizer, SEEDS[name])
    write(model, tokenizer, place / name)
    if name == BROKEN_FROM:
        write(model, tokenizer, place / "broken", BROKEN_ZEROS)


def main() -> None:
    place, begun = Path(sys.argv[1]), time.monotonic()
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for made in [pool.submit(make, place, name) for name in SEEDS]:
            made.result()
    print(f"three checkpoints in {time.monotonic() - begun:.1f} s")


if __name__ == "__main__":
    main()
