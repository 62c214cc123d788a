"""What can be refused before the forward pass, which may take hours."""

import numpy as np
import torch
from transformers.activations import ACT2FN

from neuronrank.checkpoint import ModelArtifact
from neuronrank.collection import CollectParams
from neuronrank.oneshot.model_alone import manifest_alone
from neuronrank.oneshot.request import Request
from neuronrank.params import validate
from neuronrank.planning import require_sufficient
from neuronrank.pruning import pruned_head, selected_modules
from neuronrank.scores import score_header
from neuronrank.windows import Windows


def require_possible(model: ModelArtifact, request: Request) -> None:
    """Refuse a request that this model cannot serve.

    Raises:
        UnknownName: no layout for this architecture.
        ParamsError: more layers than the model has, or nothing to prune.
        MismatchError: a weight is missing, or a tied head may not be untied.
    """
    header = score_header(manifest_alone(model), request.name, request.recipe)
    selected_modules(header, request.pattern)
    pruned_head(model, header, request.pattern)


def require_collectable(model: ModelArtifact, windows: Windows, request: Request) -> None:
    """Refuse a request that statistics collected of these windows cannot serve.

    Raises:
        ParamsError: they would not keep what the method reads.
    """
    planned = validate(CollectParams, request.collect, "collect")
    n_classes = min(planned.classes, len(np.unique(windows.token_ids)))
    config = model.description["config"]
    require_sufficient(
        planned.model_copy(update={"classes": n_classes}),
        len(windows.token_ids),
        request.recipe,
        f"--prune_method {request.name}",
        config["model_type"],
        _lowest(config.get("hidden_act", "")),
    )


def _lowest(activation: str) -> float:
    """Return the lowest value of an activation function, 0 for one that transformers does not know."""
    if activation not in ACT2FN:
        return 0.0
    return float(ACT2FN[activation](torch.linspace(-8, 0, 4001)).min())
