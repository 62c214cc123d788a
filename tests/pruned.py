"""Small models and scores made by hand, for tests of pruning that need no statistics."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from neuronrank.checkpoint import MODEL_FILE, ModelArtifact, describe_model, open_model
from neuronrank.files import write_sealed_json
from neuronrank.mask_store import MaskFile
from neuronrank.masking import make_masks
from neuronrank.models.llama import LAYOUT
from neuronrank.patterns import read_pattern
from neuronrank.pruning import iter_masks
from tests.conftest import tiny_config

PLAIN = {"default_group": "module", "elements": True, "weight_exp": 1.0, "weight_multi": 1.0, "params": {}}


def make_model(directory: Path, tokenizer_of: Path, shard: str = "20KB", **changes) -> ModelArtifact:
    """Write a random Llama with as much of `tiny_config` changed as wanted, and fetch it in place."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(tiny_config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(directory, max_shard_size=shard)
    for path in tokenizer_of.glob("tokenizer*"):
        shutil.copyfile(path, directory / path.name)
    write_sealed_json(directory / MODEL_FILE, describe_model(directory, {"source": "path"}, {}))
    return open_model(directory)


def header_of(model: ModelArtifact, parts: dict[str, dict] | None = None) -> dict:
    """Return a scores' header for a model; every part is scored by magnitude unless `parts` says otherwise."""
    config = model.description["config"]
    modules = [
        {
            "name": f"{LAYOUT.layers}.{layer}.{role.path}",
            "layer": layer,
            "part": role.part,
            "shape": model.tensors[f"{LAYOUT.layers}.{layer}.{role.path}.weight"]["shape"],
            "neuron_tap": role.neuron_tap,
            "neuron_axis": role.neuron_axis,
            "weight": f"{LAYOUT.layers}.{layer}.{role.path}.weight",
            "rows": None,
            "transposed": False,
        }
        for layer in range(config["num_hidden_layers"])
        for role in LAYOUT.linears
    ]
    magnitude = {"method": "magnitude", **PLAIN}
    return {
        "recipe": "mine",
        "parts": {"attention": magnitude, "mlp": magnitude} if parts is None else parts,
        "modules": modules,
        "lm_head": {
            "module": "lm_head",
            "weight": "lm_head.weight" if "lm_head.weight" in model.tensors else None,
            "embeddings": "model.embed_tokens.weight",
            "tied": config["tie_word_embeddings"],
        },
        "n_layers": config["num_hidden_layers"],
        "model": {"fingerprint": model.fingerprint},
        "calibration": {},
        "collect": {},
    }


@dataclass
class Pruner:
    """A model and its scores, asked for masks by one pattern after the other."""

    model: ModelArtifact
    factors: dict[str, np.ndarray]
    header: dict

    def masks(self, **pattern) -> list:
        return list(iter_masks(self.model, self.factors, self.header, read_pattern(pattern, "patterns.test")))

    def file(self, path: Path, **pattern) -> MaskFile:
        """Write a mask file as the stage does."""
        make_masks(self.model, self.factors, self.header, read_pattern(pattern, "patterns.test"), "test", path)
        return MaskFile(path)

    def weight(self, name: str) -> np.ndarray:
        """Return |W| of a module."""
        return self.model.checkpoint().tensor(f"{name}.weight").float().abs().numpy()
