"""Perplexity of a model, dense or masked, with the loss of every window kept.

Protocol (METHODS section 5): non-overlapping windows of T tokens, mean cross-entropy over the T - 1 predicted tokens
of each, perplexity = exp of the mean over all predicted tokens.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import nn
from transformers import AutoModelForCausalLM

from neuronrank.checkpoint import ModelArtifact
from neuronrank.errors import MismatchError, NotFiniteError
from neuronrank.mask_store import MaskFile
from neuronrank.params import Section
from neuronrank.zero_shot import ZeroShotParams


class EvalParams(Section):
    """How the evaluation runs."""

    dtype: Literal["bfloat16", "float16", "float32"]
    windows_per_batch: PositiveInt
    seed: int = Field(ge=0)
    zero_shot: ZeroShotParams = ZeroShotParams()
    """No task unless some are named."""


def load_model(artifact: ModelArtifact, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Load a whole causal language model for evaluation.

    Raises:
        MismatchError: a tensor is not the one that was fetched, or the checkpoint lacks one that the model needs.
    """
    checkpoint = artifact.checkpoint()
    for name in checkpoint.names:
        checkpoint.tensor(name)  # checked as it is read
    model, info = AutoModelForCausalLM.from_pretrained(
        artifact.weights_directory, dtype=dtype, trust_remote_code=False, output_loading_info=True
    )
    # transformers would fill what is missing with random numbers
    bad = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in info[kind])
    if bad:
        raise MismatchError(f"{artifact.weights_directory}: has no fitting tensor for {', '.join(bad[:3])}")
    network: nn.Module = model
    return network.to(device).eval()


@torch.no_grad()
def untie_(model: nn.Module, untied: dict[str, str]) -> None:
    """Give each weight a copy of its own of the weight that it is tied to, in place.

    Args:
        model: a causal language model; its configuration says afterwards that nothing is tied.
        untied: name of the weight -> name of the one that it is tied to.

    Raises:
        MismatchError: the model lacks one of the two, or they are not the same weight.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, source in untied.items():
        if name not in parameters or parameters[name] is not parameters.get(source):
            raise MismatchError(f"{name}: the mask unties it from {source}, but the model does not tie the two")
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, nn.Parameter(parameters[source].detach().clone()))
    if untied:
        config: Any = model.config
        config.tie_word_embeddings = False


@torch.no_grad()
def apply_masks_(model: nn.Module, masks: MaskFile) -> None:
    """Set the removed weights of a model to zero, in place; a head that the mask unties is untied before.

    Raises:
        MismatchError: the model lacks a masked weight, or its shape differs.
    """
    untie_(model, masks.untied)
    parameters = dict(model.named_parameters())
    for name in masks.weights:
        keep = torch.from_numpy(masks.keep(name))
        if name not in parameters or parameters[name].shape != keep.shape:
            found = tuple(parameters[name].shape) if name in parameters else "no such weight"
            raise MismatchError(f"{masks.path}: masks {name} of shape {tuple(keep.shape)}, the model has {found}")
        parameters[name].masked_fill_(~keep.to(parameters[name].device), 0)


@torch.no_grad()
def window_losses(
    model: nn.Module, token_ids: NDArray[np.int32], windows_per_batch: int, on_done: Callable[[int], object]
) -> NDArray[np.float64]:
    """Return the mean cross-entropy of each window.

    Args:
        model: a causal language model.
        token_ids: (N, T).
        windows_per_batch: how many windows run at once.
        on_done: called with the number of windows done, after each batch.

    Returns:
        (N,), nat/token, over the T - 1 predicted tokens of each window.

    Raises:
        NotFiniteError: a loss is NaN or infinite.
    """
    device = next(model.parameters()).device
    losses: list[float] = []
    for first in range(0, len(token_ids), windows_per_batch):
        ids = torch.from_numpy(token_ids[first : first + windows_per_batch]).long().to(device)
        logits = model(ids, use_cache=False).logits
        for window, targets in zip(logits[:, :-1], ids[:, 1:], strict=True):  # one window in float32 at a time
            losses.append(nn.functional.cross_entropy(window.float(), targets).item())
        on_done(len(ids))
    result = np.array(losses)
    n_bad = int(np.count_nonzero(~np.isfinite(result)))
    if n_bad:
        raise NotFiniteError(f"evaluation: the loss of {n_bad} of {result.size} windows is NaN or infinite")
    return result
