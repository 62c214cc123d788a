"""Micro-topics: clusters of the tokens of one layer by the direction of the residual stream that enters it.

Cosine k-means on a fixed random projection to 128 dimensions (METHODS section 2, S4): k-means++ start, a fixed number
of Lloyd iterations, all from one seed. The projection keeps the signs; one is drawn per width, since a projection
for one width does not fit another. The fit uses a seeded sample of the tokens; then every token, sampled or not, is
given to the centroid with the highest cosine. At score time micro-topics are merged to fewer along `merge_order`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt
from scipy.cluster.hierarchy import linkage
from torch import Tensor

from neuronrank.errors import NotFiniteError, ParamsError
from neuronrank.params import Section

PROJECTED_WIDTH = 128
SAMPLE_PER_TOPIC, START_PER_TOPIC = 64, 16
"""Tokens that the fit, and its start, use."""
N_NEAREST = 12
NOWHERE = np.iinfo(np.uint32).max
"""In `nearest`, where a topic has fewer tokens."""


class TopicParams(Section):
    """How micro-topics are found; 0 clusters leave topics out."""

    micro_topics: int = Field(ge=0, lt=2**16)  # labels are kept in 16 bits
    """K_micro: the most topics that can be asked for at score time."""
    iterations: int = Field(ge=4)
    """Of Lloyd's algorithm."""
    seed: NonNegativeInt


@dataclass(frozen=True)
class Topics:
    """The micro-topics of one layer."""

    labels: Tensor
    """(N, T) int64: the topic of every token."""
    arrays: dict[str, NDArray[Any]]
    """`labels` (N, T), `centroids` (K, 128) of unit length, `count` (K,) tokens, `merges` (K - 1, 2), `nearest`
    (K, 12, 2): document and position of the topic's own tokens with the highest cosine."""


def projection(width: int, seed: int) -> Tensor:
    """Return a (width, 128) float32 Gaussian projection, scaled so that it keeps lengths on average."""
    drawn = np.random.default_rng([seed, width]).standard_normal((width, PROJECTED_WIDTH), dtype=np.float32)
    return torch.from_numpy(drawn / np.float32(np.sqrt(PROJECTED_WIDTH)))


def projected(entering: Tensor, batches: Iterable[slice], params: TopicParams, device: torch.device) -> Tensor:
    """Project what enters a layer, (n, T, H), micro-batch by micro-batch: (n, T, 128) float32 on the device.

    In float32 whatever the model's type: a processor without instructions for bfloat16 is far slower in that.
    """
    onto = projection(entering.shape[-1], params.seed).to(device)
    found = torch.empty(*entering.shape[:2], PROJECTED_WIDTH, device=device)
    for rows in batches:
        found[rows] = entering[rows].to(device).float() @ onto
    return found


def find_topics(
    projected: Tensor, params: TopicParams, layer: int, centroids: NDArray[np.float32] | None = None
) -> Topics:
    """Cluster the tokens of one layer.

    Args:
        projected: (N, T, 128) float32, the projected residual stream.
        params: number of clusters, iterations, seed.
        layer: for the seed and for messages.
        centroids: (K, 128), fitted before on other tokens; None fits them on these.

    Raises:
        ParamsError: fewer tokens than clusters.
        NotFiniteError: a token's hidden state is NaN or infinite.
    """
    points = projected.reshape(-1, PROJECTED_WIDTH)
    k = params.micro_topics
    if len(points) < k:
        raise ParamsError(f"collect.topics.micro_topics {k}: there are {len(points)} calibration tokens. Lower it")
    if not torch.isfinite(points.sum()):  # one that is not makes the sum so
        raise NotFiniteError(f"layer {layer}: the residual stream that enters it is NaN or infinite")
    points = torch.nn.functional.normalize(points, dim=1)
    fitted = _fit(points, params, layer) if centroids is None else torch.from_numpy(centroids).to(points.device)
    cosines = points @ fitted.T
    labels = _closest(cosines)
    best = cosines.gather(1, labels[:, None])[:, 0]
    count = torch.bincount(labels, minlength=k).cpu().numpy().astype(np.int32)
    shape = projected.shape[:2]
    arrays = {
        "labels": labels.view(shape).cpu().numpy().astype(np.uint16),
        "centroids": fitted.cpu().numpy(),
        "count": count,
        "merges": merge_order(fitted.cpu().numpy()),
        "nearest": _nearest(best.cpu().numpy(), labels.cpu().numpy(), k, shape[1]),
    }
    return Topics(labels.view(shape), arrays)


def _fit(points: Tensor, params: TopicParams, layer: int) -> Tensor:
    k, rng = params.micro_topics, np.random.default_rng([params.seed, layer])
    sample = points[torch.from_numpy(np.sort(rng.permutation(len(points))[: SAMPLE_PER_TOPIC * k])).to(points.device)]
    centroids = _start(sample[rng.permutation(len(sample))[: START_PER_TOPIC * k]], k, rng)
    for _ in range(params.iterations):
        centroids = _means(sample, _closest(sample @ centroids.T), centroids)
    return centroids


def _start(points: Tensor, k: int, rng: np.random.Generator) -> Tensor:
    """Choose k points by k-means++ (Arthur and Vassilvitskii 2007): far from the chosen ones with a higher chance."""
    chosen = [int(rng.integers(len(points)))]
    distance = torch.full((len(points),), torch.inf, device=points.device)
    for _ in range(k - 1):
        # for unit vectors the squared distance is 2 (1 - cosine)
        distance = torch.minimum(distance, (1 - points @ points[chosen[-1]]).clamp(min=0))
        cumulative = distance.double().cumsum(dim=0).cpu().numpy()
        chosen.append(min(int(np.searchsorted(cumulative, rng.random() * cumulative[-1])), len(points) - 1))
    return points[chosen]


def _closest(cosines: Tensor) -> Tensor:
    """Return the column of the largest value of each row; on the CPU numpy finds it in half the time."""
    return torch.from_numpy(cosines.numpy().argmax(axis=1)) if cosines.device.type == "cpu" else cosines.argmax(dim=1)


def _means(points: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    """Return the directions of the clusters' means; an empty cluster keeps its centroid."""
    sums = torch.zeros_like(centroids).index_add_(0, labels, points)
    lengths = sums.norm(dim=1, keepdim=True)
    return torch.where(lengths > 0, sums / lengths.clamp(min=1e-30), centroids)


def _nearest(best: NDArray[Any], labels: NDArray[Any], k: int, n_tokens: int) -> NDArray[np.uint32]:
    order = np.argsort(4.0 * labels - best, kind="stable")  # by topic, the highest cosine first
    starts = np.searchsorted(labels[order], np.arange(k + 1))
    places = starts[:-1, None] + np.arange(N_NEAREST)
    tokens = order[np.minimum(places, len(order) - 1)]
    held = (places < starts[1:, None])[..., None]
    return np.where(held, np.stack(np.divmod(tokens, n_tokens), axis=-1), NOWHERE).astype(np.uint32)


def merge_order(centroids: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return which two clusters merge first, second, … until one is left: Ward's linkage (Ward 1963).

    Of average linkage of cosines one topic would take most tokens: 66 % of them at 16 topics in the median layer of a
    trained model, 20 % here.

    Returns:
        (K - 1, 2); clusters below K are micro-topics, K + i is what step i made.
    """
    if len(centroids) < 2:
        return np.zeros((0, 2), dtype=np.int32)
    return np.asarray(linkage(centroids.astype(np.float64), method="ward")[:, :2], dtype=np.int32)
