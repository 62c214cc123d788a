"""Perplexity of a model, dense or masked, with the loss of every window kept.

Protocol (METHODS section 5): non-overlapping windows of T tokens, mean cross-entropy over the T - 1 predicted tokens
of each, perplexity = exp of the mean over all predicted tokens.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import nn

from neuronrank.checkpoint import ModelArtifact
from neuronrank.errors import NotFiniteError
from neuronrank.mask_store import MaskFile
from neuronrank.masked_checkpoint import MaskedCheckpoint
from neuronrank.params import Section
from neuronrank.ranks import Ranks
from neuronrank.skeleton import Skeleton
from neuronrank.zero_shot import ZeroShotParams


class EvalParams(Section):
    """How the evaluation runs."""

    dtype: Literal["bfloat16", "float16", "float32"]
    windows_per_batch: PositiveInt
    seed: int = Field(ge=0)
    zero_shot: ZeroShotParams = ZeroShotParams()
    """No task unless some are named."""


def load_model(
    artifact: ModelArtifact, dtype: torch.dtype, device: torch.device, masks: MaskFile | None = None
) -> nn.Module:
    """Load a whole causal language model for evaluation, its removed weights as zeros when a mask is given.

    Raises:
        UnknownName: no layout for this architecture.
        MismatchError: a tensor is not the one that was fetched, the checkpoint lacks one that the model needs, or the
            mask was made for another model.
    """
    if masks is None:
        weights = artifact.checkpoint()
    else:
        masks.require_model(artifact.fingerprint, artifact.directory)
        weights = MaskedCheckpoint(artifact, masks)
    skeleton = Skeleton(weights, dtype)
    skeleton.load_outside(device)
    for index in range(len(skeleton.layers)):
        skeleton.load_layer(index, device)
    model: nn.Module = skeleton.model
    return model


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


def shared_losses(
    model: nn.Module,
    token_ids: NDArray[np.int32],
    windows_per_batch: int,
    on_done: Callable[[int], object],
    ranks: Ranks,
) -> NDArray[np.float64]:
    """As `window_losses`, every process its share of whole batches; all losses in the first one, [] in the others."""
    shares = ranks.shares(len(token_ids), windows_per_batch)
    own = window_losses(model, token_ids[shares[ranks.rank]], windows_per_batch, on_done)
    parts = ranks.to_first(torch.from_numpy(own), [share.stop - share.start for share in shares])
    return np.concatenate([part.numpy() for part in parts]) if ranks.first else np.zeros(0)
