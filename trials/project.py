"""A project small enough to run hundreds of times: a random two-layer model, random words, two settings of all."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"word{number}" for number in range(60)]


def make_project(root: Path) -> None:
    """Write model, texts, and two parameter files to `root`: `params.yaml`, and `earlier.yaml` of other settings."""
    _write_model(root / "source/model", seed=0)
    _write_model(root / "source/earlier-model", seed=1)
    for seed, name in enumerate(("calibration", "evaluation", "earlier-calibration", "earlier-evaluation")):
        _write_text(root / f"source/{name}.jsonl", seed)
    wanted = _params()
    (root / "params.yaml").write_text(yaml.safe_dump(wanted))
    (root / "earlier.yaml").write_text(yaml.safe_dump(_earlier(wanted)))
    (root / "second.yaml").write_text(yaml.safe_dump(_second(wanted)))


def _params() -> dict[str, Any]:
    part = {"method": "wanda", "weight_exp": 1.0, "activation_exp": 1.0}
    return {
        "model": {"source": "path", "architecture": "llama", "path": "source/model"},
        "text": {
            "calibration": {"source": "files", "pattern": "source/calibration.jsonl"},
            "evaluation": {"words": {"source": "files", "pattern": "source/evaluation.jsonl"}},
        },
        "prepare": {"window_tokens": 16, "calibration_windows": 8, "evaluation_windows": 4, "seed": 0},
        "collect": {
            "dtype": "float32",
            "documents_per_batch": 4,
            "profile": "standard",
            "classes": 6,
            "topics": {"micro_topics": 4, "iterations": 4, "seed": 0},
        },
        "recipes": {"wanda": {"attention": part, "mlp": part}},
        "patterns": {"50pct": {"rule": "unstructured", "sparsity": 0.5}},
        "sweep": {"recipes": ["wanda"], "patterns": ["50pct"]},
        "sequential": {"recipes": [], "patterns": []},
        "eval": {"dtype": "float32", "windows_per_batch": 2, "seed": 0},
        "report": {"reference": "wanda", "seed": 0},
    }


def _earlier(params: dict[str, Any]) -> dict[str, Any]:
    """Return parameters with which every stage writes other bytes."""
    other = copy.deepcopy(params)
    other["model"]["path"] = "source/earlier-model"
    other["text"]["calibration"]["pattern"] = "source/earlier-calibration.jsonl"
    other["text"]["evaluation"]["words"]["pattern"] = "source/earlier-evaluation.jsonl"
    other["prepare"] |= {"seed": 1, "evaluation_windows": 3}
    other["collect"]["classes"] = 5
    for part in ("attention", "mlp"):
        other["recipes"]["wanda"][part] = {**params["recipes"]["wanda"][part], "activation_exp": 0.5}
    other["patterns"]["50pct"]["sparsity"] = 0.25
    other["eval"]["dtype"] = "bfloat16"
    other["report"]["seed"] = 1
    return other


def _second(params: dict[str, Any]) -> dict[str, Any]:
    """Return parameters whose calibration windows are others, so that both statistics can be merged."""
    other = copy.deepcopy(params)
    other["text"]["calibration"]["pattern"] = "source/earlier-calibration.jsonl"
    return other


def _write_model(directory: Path, seed: int) -> None:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    vocabulary = {word: number for number, word in enumerate(["<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(directory)


def _write_text(path: Path, seed: int) -> None:
    drawn = random.Random(seed)
    lines = [json.dumps({"text": " ".join(drawn.choices(WORDS, k=80))}) for _ in range(6)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
