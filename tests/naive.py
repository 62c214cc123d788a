"""Plain definitions in float64, written from METHODS without any of the library's code."""

import math

import numpy as np
import torch
from torch import nn


def activations(
    model: nn.Module, token_ids: np.ndarray, layers: list[int], per_batch: int = 1
) -> dict[tuple[int, str], np.ndarray]:
    """Run a Llama on so many documents at a time and return (layer, tap) -> (N, T, C) float64 from plain hooks."""
    caught: dict[tuple[int, str], list[np.ndarray]] = {}

    def keep(key, tensor):
        caught.setdefault(key, []).append(tensor.detach().double().numpy())

    handles = []
    for index in layers:
        attention, mlp = model.model.layers[index].self_attn, model.model.layers[index].mlp
        inputs = {
            "attn_in": attention.v_proj,
            "attn_ctx": attention.o_proj,
            "mlp_in": mlp.up_proj,
            "mlp_mid": mlp.down_proj,
        }
        outputs = {"q_out": attention.q_proj, "k_out": attention.k_proj, "v_out": attention.v_proj}
        for tap, module in inputs.items():
            handles.append(module.register_forward_pre_hook(lambda _m, x, key=(index, tap): keep(key, x[0])))
        for tap, module in outputs.items():
            handles.append(module.register_forward_hook(lambda _m, _x, y, key=(index, tap): keep(key, y)))
        gate = mlp.gate_proj  # a = phi(g), from the gate's own output
        handles.append(gate.register_forward_hook(lambda _m, _x, y, key=(index, "gate_pre"): keep(key, y)))
        handles.append(
            gate.register_forward_hook(lambda _m, _x, y, key=(index, "neuron"): keep(key, nn.functional.silu(y)))
        )
    with torch.no_grad():
        for first in range(0, len(token_ids), per_batch):
            model(torch.tensor(token_ids[first : first + per_batch], dtype=torch.long), use_cache=False)
    for handle in handles:
        handle.remove()
    return {key: np.concatenate(values) for key, values in caught.items()}


def wanda_factor(x: np.ndarray) -> np.ndarray:
    """L2 norm of every input channel over all tokens: (N, T, C) -> (C,)."""
    flat = x.reshape(-1, x.shape[-1])
    return np.array([math.sqrt(sum(float(v) ** 2 for v in column)) for column in flat.T])


def document_means(a: np.ndarray) -> np.ndarray:
    """Mean |a| of every document and channel: (N, T, C) -> (N, C)."""
    return np.abs(a).mean(axis=1)


def tfidf_factor(a: np.ndarray, tf_exp: float, idf_exp: float, q_active: float) -> np.ndarray:
    """TF^beta * IDF^gamma of METHODS section 3.4, mode doc: (N, T, C) -> (C,)."""
    means = document_means(a)
    threshold = np.quantile(means.reshape(-1), q_active)
    n_documents, n_channels = means.shape
    factor = np.empty(n_channels)
    for c in range(n_channels):
        tf = np.abs(a[:, :, c]).mean()
        df = sum(1 for d in range(n_documents) if means[d, c] >= threshold)
        idf = math.log((n_documents + 1) / (df + 1)) + 1
        factor[c] = tf**tf_exp * idf**idf_exp
    return factor


def mask(scores: np.ndarray, sparsity: float, group: str) -> np.ndarray:
    """True = kept; a stable sort of each row, or of the whole module."""
    rows = scores if group == "row" else scores.reshape(1, -1)
    k = math.floor(sparsity * rows.shape[1] + 1e-9)
    kept = np.ones(rows.shape, dtype=bool)
    for r in range(rows.shape[0]):
        kept[r, np.argsort(rows[r], kind="stable")[:k]] = False
    return kept.reshape(scores.shape)
