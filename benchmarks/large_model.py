"""A random bfloat16 Llama of 3.2 billion weights in several shards, collected from and pruned, with the peak memory."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from neuronrank.checkpoint import open_model
from neuronrank.fetching import fetch_model
from neuronrank.files import write_json
from neuronrank.windows import write_windows

HIDDEN, MLP, LAYERS, HEADS, KEY_HEADS, HEAD, VOCAB = 3072, 8192, 28, 24, 8, 128, 128256
"""As Llama 3.2 3B; the output head is tied to the embeddings."""
LAYERS_A_SHARD = 7
WINDOWS, TOKENS = 4, 64
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "head_dim": HEAD,
    "vocab_size": VOCAB,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}


def write_model(directory: Path, tokenizer_of: Path) -> None:
    """Write the model, one shard in memory at a time."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    for path in tokenizer_of.glob("tokenizer*"):
        (directory / path.name).write_bytes(path.read_bytes())
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    shards = [{"model.embed_tokens.weight": drawn(VOCAB, HIDDEN), "model.norm.weight": torch.ones(HIDDEN).bfloat16()}]
    weight_map, n_shards = {}, 1 + LAYERS // LAYERS_A_SHARD
    for number in range(n_shards):
        tensors = shards.pop() if number == 0 else _layers(number - 1, drawn)
        name = f"model-{number + 1:05d}-of-{n_shards:05d}.safetensors"
        save_file(tensors, directory / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _layers(number: int, drawn: Any) -> dict[str, torch.Tensor]:
    tensors = {}
    for layer in range(number * LAYERS_A_SHARD, (number + 1) * LAYERS_A_SHARD):
        shapes = {
            "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
            "self_attn.k_proj": (KEY_HEADS * HEAD, HIDDEN),
            "self_attn.v_proj": (KEY_HEADS * HEAD, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
            "mlp.gate_proj": (MLP, HIDDEN),
            "mlp.up_proj": (MLP, HIDDEN),
            "mlp.down_proj": (HIDDEN, MLP),
        }
        tensors |= {f"model.layers.{layer}.{name}.weight": drawn(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = torch.ones(HIDDEN).bfloat16()
    return tensors


def measure(directory: Path, tokenizer_of: Path, params: Path) -> dict[str, Any]:
    """Make the model below a directory, unless it is there, run the stages, and return their peaks in GiB and seconds.

    Args:
        directory: 7 GB are needed.
        tokenizer_of: a directory with a tokenizer; any will do.
        params: params.yaml of the pipeline.
    """
    source, model, tokens = directory / "source", directory / "model", directory / "tokens"
    if not (model / "model.json").exists():
        write_model(source, tokenizer_of)
        fetch_model({"source": "path", "path": str(source)}, model)
    ids = np.random.default_rng(0).integers(0, VOCAB, (WINDOWS, TOKENS), dtype=np.int32)
    header = {
        "seed": 0,
        "source": {},
        "origins": [],
        "window_tokens": TOKENS,
        "tokenizer_sha256": open_model(model).tokenizer_sha256,
    }
    write_windows(tokens / "windows.safetensors", ids, header)
    found: dict[str, Any] = {}
    out, scores = directory / "statistics", directory / "wanda.safetensors"
    found["collect"] = _run("collect", params, directory, "--model", model, "--tokens", tokens, "--out", out)
    found["score"] = _run("score", params, directory, "--statistics", out, "--recipe", "wanda", "--out", scores)
    chosen = ("--pattern", "50pct", "--out", directory / "mask.safetensors")
    found["prune"] = _run("prune", params, directory, "--model", model, "--scores", scores, *chosen)
    write_json(directory / "large.json", found)
    return found


def _run(stage: str, params: Path, directory: Path, *options: Any) -> dict[str, float]:
    metrics = directory / f"{stage}.json"
    command = [sys.executable, "-m", f"stages.{stage}", *map(str, options)]
    begin = time.perf_counter()
    subprocess.run([*command, "--params", str(params), "--metrics", str(metrics)], check=True)
    peak = json.loads(metrics.read_text())["peak_rss_mib"] / 1024
    return {"seconds": round(time.perf_counter() - begin, 1), "peak_gib": round(peak, 2)}
