"""Every method's element and neuron scores in float64, written from METHODS without any of the library's code.

A layer is given as plain arrays; nothing is read from an artifact but the topic labels and centroids.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import wraps

import numpy as np
from scipy.cluster.hierarchy import cut_tree, linkage

TAP_OF = {"q": "q_out", "k": "k_out", "v": "v_out", "o": "attn_ctx", "gate": "neuron", "up": "neuron", "down": "neuron"}
INPUT_OF = dict.fromkeys("qkv", "attn_in") | {"o": "attn_ctx", "gate": "mlp_in", "up": "mlp_in", "down": "mlp_mid"}
COLUMNS = {"o", "down"}
"""Roles whose neurons lie on columns."""


@dataclass
class Layer:
    """One decoder layer."""

    taps: dict
    """tap -> (N, T, C)."""
    weights: dict
    """role -> (O, I)."""
    token_ids: np.ndarray
    """(N, T)."""
    labels: np.ndarray
    """(N, T) micro-topic."""
    centroids: np.ndarray
    """(K_micro, 128)."""
    known: dict = field(default_factory=dict)
    """What `remembered` has computed."""


def remembered(define):
    """Compute a vector of a layer once: several modules ask for it."""

    @wraps(define)
    def ask(layer: Layer, *arguments):
        key = define.__name__, repr(arguments)
        if key not in layer.known:
            layer.known[key] = define(layer, *arguments)
        return layer.known[key]

    return ask


def edges() -> np.ndarray:
    """The grid of thresholds: on the bfloat16 grid, as far apart as a factor of 1.04 allows, 2^-24 to 2^16."""
    steps = [128]
    while steps[-1] * 1.04 < 256:
        steps.append(math.floor(steps[-1] * 1.04))
    return np.array([s / 128 * 2.0**e for e in range(-24, 16) for s in steps] + [2.0**16])


def nearest_edge(value: float) -> float:
    grid = edges()
    return grid[np.argmin(np.abs(np.log(grid) - math.log(value)))]


def pooled_edge(x: np.ndarray, q: float) -> float:
    """The edge for which the share of all values not above it is nearest to q."""
    grid, values = edges(), np.sort(np.abs(x).ravel())
    shares = np.searchsorted(values, grid, side="right") / values.size
    return grid[np.argmin(np.abs(shares - q))]


def n_active_tokens(x: np.ndarray, p: dict) -> np.ndarray:
    """(T, C) -> (C,) tokens on which a channel is active."""
    kind = p.get("threshold", "pooled")
    if kind == "sign":
        return (x > 0).sum(axis=0)
    if kind == "theta":
        theta = p.get("theta", 0.0)
        limit = 0.0 if theta == 0 else math.copysign(nearest_edge(abs(theta)), theta)
        return (x > limit).sum(axis=0)
    if kind == "pooled":
        return (np.abs(x) > pooled_edge(x, p.get("q_active", 0.6))).sum(axis=0)
    means = np.abs(x).mean(axis=0)
    limits = np.array([nearest_edge(p.get("kappa", 1.0) * mean) for mean in means])
    return (np.abs(x) > limits).sum(axis=0)


def spikiness(x: np.ndarray, p: dict) -> np.ndarray:
    """(T, C) -> (C,): mean of the ceil((1 - q) n) largest |x| over the mean."""
    k = math.ceil((1 - p.get("spike_quantile", 0.9)) * len(x) - 1e-9)
    magnitude = np.sort(np.abs(x), axis=0)
    return np.clip(
        magnitude[-k:].mean(axis=0) / np.maximum(magnitude.mean(axis=0), p.get("eps", 1e-10)),
        1,
        p.get("spike_max", 10.0),
    )


def flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


@remembered
def wanda_select(layer: Layer, tap: str, p: dict, idf_exp: float, spikiness_exp: float) -> np.ndarray:
    x = flat(layer.taps[tap])
    norms = np.sqrt((x**2).sum(axis=0))
    share = n_active_tokens(x, p) / len(x)
    idf = np.array([min(max(math.log(1 / max(s, p.get("eps", 1e-10))), 0), p.get("idf_max", 10.0)) for s in share])
    idf = idf + 1 if p.get("smooth") else idf
    factor = norms * idf**idf_exp if idf_exp else norms
    return factor * spikiness(x, p) ** spikiness_exp if spikiness_exp else factor


def merged(centroids: np.ndarray, k: int) -> np.ndarray:
    """Micro-topic -> topic: Ward's linkage, cut into k."""
    return cut_tree(linkage(centroids.astype(np.float64), "ward"), n_clusters=k)[:, 0]


def group_means(layer: Layer, x: np.ndarray, p: dict) -> tuple[np.ndarray, np.ndarray]:
    """(N, T, C) -> (G, C) means of |x| and of x over documents or non-empty topics."""
    if p.get("mode", "doc") == "doc":
        x = x[: p.get("nsamples")]
        return np.abs(x).mean(axis=1), x.mean(axis=1)
    topic = merged(layer.centroids, p.get("topics", 64))[layer.labels].ravel()
    rows = [flat(x)[topic == t] for t in np.unique(topic)]
    return np.array([np.abs(r).mean(axis=0) for r in rows]), np.array([r.mean(axis=0) for r in rows])


@remembered
def tfidf(layer: Layer, tap: str, p: dict) -> np.ndarray:
    means, signed = group_means(layer, layer.taps[tap], p)
    kind = p.get("threshold", "pooled")
    if kind == "pooled":
        active = means >= np.quantile(means, p.get("q_active", 0.6))
    elif kind == "relative":
        active = means >= p.get("kappa", 1.0) * means.mean(axis=0)
    else:
        active = signed > 0
    idf = np.log((len(means) + 1) / (active.sum(axis=0) + 1)) + 1
    factor = means.mean(axis=0) ** p.get("tf_exp", 1.0) * idf ** p.get("idf_exp", 1.0)
    rho = p.get("spikiness_exp", 0.0)
    return factor * spikiness(flat(layer.taps[tap]), p) ** rho if rho else factor


@remembered
def old(layer: Layer, tap: str, p: dict) -> np.ndarray:
    x = flat(layer.taps[tap])
    active = n_active_tokens(x, {"threshold": "theta", **p})
    idf = np.log((len(x) + 1) / (active + 1)) + 1
    return np.abs(x).mean(axis=0) ** p.get("tf_exp", 1.0) * idf ** p.get("idf_exp", 1.0)


@remembered
def class_rows(layer: Layer, n: int) -> list[np.ndarray]:
    """The neuron activations of each of the n most frequent token ids, and of all other tokens."""
    counts = Counter(layer.token_ids.ravel().tolist())
    chosen = [token for token, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:n]]
    x, ids = flat(layer.taps["neuron"]), layer.token_ids.ravel()
    return [x[ids == token] for token in chosen] + [x[~np.isin(ids, chosen)]]


@remembered
def variance(layer: Layer, p: dict) -> np.ndarray:
    x = layer.taps["neuron"]
    total = x.mean(axis=1).var(axis=0, ddof=1) + p.get("token_weight", 0.0) * flat(x).var(axis=0)
    n = p.get("classes", 512)
    return total + class_variance(layer, n) if n else total


def class_variance(layer: Layer, n: int) -> np.ndarray:
    return np.array([rows.mean(axis=0) for rows in class_rows(layer, n)[:-1]]).var(axis=0)


@remembered
def class_score(layer: Layer, method: str, p: dict) -> np.ndarray:
    rows = [r for r in class_rows(layer, p.get("classes", 512)) if len(r)]
    x, eps = flat(layer.taps["neuron"]), p.get("eps", 1e-10)
    share = [len(r) / len(x) for r in rows]
    distance = [(r.mean(axis=0) - x.mean(axis=0)) ** 2 for r in rows]
    between = sum(s * d for s, d in zip(share, distance, strict=True))
    within = sum(s * r.var(axis=0) for s, r in zip(share, rows, strict=True))
    if method == "neuronrank_between":
        return between
    if method == "neuronrank_fisher":
        return between / (within + eps)
    if method == "neuronrank_mahalanobis":
        return between / ((x.var(axis=0) if p.get("pooled") else within) + eps)
    several = [(s, r) for s, r in zip(share, rows, strict=True) if len(r) > 1]
    if method == "neuronrank_qda":
        return sum(s * (r.mean(axis=0) - x.mean(axis=0)) ** 2 / (r.var(axis=0) + eps) for s, r in several)
    deviations = np.array([r.mean(axis=0) - x.mean(axis=0) for _, r in several])
    variances = np.array([r.var(axis=0) for _, r in several])
    weights = np.sqrt([s for s, _ in several])[:, None]
    _, sizes, directions = np.linalg.svd(weights * deviations, full_matrices=False)
    kept = directions[: p.get("components", 128)][sizes[: p.get("components", 128)] ** 2 > 1e-10 * sizes[0] ** 2]
    score = np.zeros(x.shape[1])
    for u in kept:
        score += u**2 * (weights[:, 0] ** 2 * (deviations @ u) ** 2 / (variances @ u**2 + eps)).sum()
    return score


def element_scores(layer: Layer, role: str, p: dict) -> np.ndarray:
    """The (O, I) scores of one module under one method."""
    method, weight = p["method"], np.abs(layer.weights[role])
    power = weight ** p.get("weight_exp", 1.0)
    neuron_axis = (lambda v: v[None, :]) if role in COLUMNS else (lambda v: v[:, None])
    if method == "magnitude":
        return power
    if method == "wanda":
        x = flat(layer.taps[INPUT_OF[role]][: p.get("nsamples")])
        return power * np.sqrt((x**2).sum(axis=0))[None, :] ** p.get("activation_exp", 1.0)
    if method.startswith("wanda_"):
        defaults = {"wanda_idf": (1, 0), "wanda_spiky": (0, 1), "wanda_select": (1, 1)}[method]
        exponents = p.get("idf_exp", defaults[0]), p.get("spikiness_exp", defaults[1])
        return power * wanda_select(layer, INPUT_OF[role], p, *exponents)[None, :]
    if method == "neuronrank_tfidf":
        axis = p.get("axis", "neuron")
        if axis == "input":
            return power * tfidf(layer, INPUT_OF[role], p)[None, :]
        tap = "gate_pre" if axis == "gate_pre" and TAP_OF[role] == "neuron" else TAP_OF[role]
        return power * neuron_axis(tfidf(layer, tap, p))
    if method == "neuronrank_old":
        kind = p.get("magnitude", "element")
        if kind != "element":
            of = layer.weights["gate"] if kind == "neuron_norm" else layer.weights[role]
            over = 0 if kind == "row_norm" and role in COLUMNS else 1
            norm = np.sqrt((of**2).sum(axis=over)) ** p.get("weight_exp", 1.0)
            power = np.broadcast_to(neuron_axis(norm), weight.shape)
        return power * neuron_axis(old(layer, TAP_OF[role], p))
    if method == "neuronrank_unstructured":
        scaled = p.get("magnitude_multi", 0.0) * weight
        if TAP_OF[role] != "neuron":
            return scaled
        return scaled + neuron_axis(p.get("variance_multi", 1.0) * variance(layer, p) ** p.get("variance_exp", 1.0))
    score = class_score(layer, method, p)
    if not p.get("element", True):
        return np.broadcast_to(neuron_axis(score), weight.shape)
    return power * neuron_axis(np.maximum(score / score.mean(), 1e-6))


def neuron_scores(layer: Layer, p: dict) -> np.ndarray:
    """The (F,) neuron scores of one layer under one method."""
    method, norm = p["method"], np.sqrt((layer.weights["gate"] ** 2).sum(axis=1))
    if method == "neuronrank":
        varied = p.get("variance_multi", 1.0) * variance(layer, p) ** p.get("variance_exp", 1.0)
        return varied + p.get("magnitude_multi", 0.0) * norm
    if method == "neuronrank_variance":
        return class_variance(layer, p.get("classes", 512))
    if method == "neuronrank_old":
        return norm ** p.get("weight_exp", 1.0) * old(layer, "neuron", p)
    return class_score(layer, method, p)
