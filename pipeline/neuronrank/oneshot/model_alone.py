"""What a model says of its modules without any statistics: all that a recipe needs that reads nothing else."""

from typing import Any

from neuronrank.checkpoint import ModelArtifact
from neuronrank.errors import MismatchError
from neuronrank.streaming import layout_of


def manifest_of(model: ModelArtifact) -> dict[str, Any]:
    """Return the model's part of a statistics manifest; what calibration would add to it is empty.

    Raises:
        UnknownName: no layout for this architecture.
        MismatchError: the model lacks a weight of its layout.
    """
    config, tensors = model.description["config"], model.tensors
    layout, n_layers = layout_of(config["model_type"]), config["num_hidden_layers"]
    modules = []
    for layer in range(n_layers):
        for role in layout.linears:
            name = f"{layout.layers}.{layer}.{role.path}"
            if f"{name}.weight" not in tensors:
                raise MismatchError(f"{model.weights_directory}: has no tensor {name}.weight; is the model whole?")
            modules.append(role.entry(name, layer, tensors[f"{name}.weight"]["shape"]))
    return {
        "model": {"fingerprint": model.fingerprint, "tokenizer_sha256": model.tokenizer_sha256},
        "calibration": {},
        "collect": {},
        "n_layers": n_layers,
        "lm_head": {"module": layout.lm_head, "embeddings": layout.embeddings},
        "modules": modules,
    }
