"""What a model says of its modules without any statistics: all that a recipe needs that reads nothing else."""

from typing import Any

import torch

from neuronrank.checkpoint import ModelArtifact
from neuronrank.skeleton import Skeleton, manifest_of


def manifest_alone(model: ModelArtifact) -> dict[str, Any]:
    """Return the model's part of a statistics manifest; what calibration would add to it is empty.

    Raises:
        UnknownName: no layout for this architecture.
        MismatchError: the model lacks a weight of its layout.
    """
    return {
        "model": {"fingerprint": model.fingerprint, "tokenizer_sha256": model.tokenizer_sha256},
        "calibration": {},
        "collect": {},
        **manifest_of(Skeleton(model.checkpoint(), torch.bfloat16)),
    }
