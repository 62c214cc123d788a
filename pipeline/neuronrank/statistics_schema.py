"""The arrays of the statistics artifact: axes, units, and how each is stored. Needs no torch.

Arrays of a tap lie at `<tap>/<name>`, those of the topics and classes at `topics/<name>` and `classes/<name>`; every
one but `classes/*` and `token_ids` has a first axis `layer`. Where the MLP is a mixture of experts, the arrays of
`mlp_in`, `gate_pre`, `neuron` and `mlp_mid` have a second axis `expert`, and count the tokens routed to each.
"""

from collections.abc import Mapping
from dataclasses import dataclass

SCHEMA = "neuronrank.statistics/5"
IMPORTED = "imatrix"
"""`collect.propagation` of statistics that were imported from an importance matrix."""

_SUMS = {"sum": "activation", "sum_abs": "activation", "sum_sq": "activation^2", "max_abs": "activation"}
_MEANING = {"sum": "a", "sum_abs": "|a|", "sum_sq": "a^2", "max_abs": "|a|, the largest"}

TOTALS = {"sum": "total_sum", "sum_abs": "tf_sum", "sum_sq": "wanda_sum_sq", "max_abs": "total_max_abs"}
"""Document sums -> what their sum (or maximum) over all documents is called."""

QUANTILES = (0.5, 0.6, 0.9, 0.99)
"""Of |a|, kept beside the sketches for people who open the store."""


@dataclass(frozen=True)
class Spec:
    """One array, without its layer axis."""

    axes: tuple[str, ...]
    units: str
    definition: str
    stacked: bool = False
    """All layers in one chunk: small arrays. The others have one chunk a layer."""
    kept_bits: int | None = None
    """Bits kept of a float32's 23 after the leading one, so that it compresses; all when None."""
    derived: bool = False
    """Follows from other arrays, at default settings."""


def _derived(units: str, definition: str) -> Spec:
    return Spec(("channel",), units, definition, stacked=True, derived=True)


ARRAYS: Mapping[str, Spec] = {
    **{
        name: Spec(("document", "channel"), units, f"{_MEANING[name]} over the tokens of each document", kept_bits=16)
        for name, units in _SUMS.items()
    },
    **{
        TOTALS[name]: Spec(("channel",), units, f"{_MEANING[name]} over all calibration tokens", stacked=True)
        for name, units in _SUMS.items()
    },
    "df_count": _derived("document", "documents whose mean |a| reaches the 0.6 quantile pooled over the tap"),
    "n_positive": Spec(("channel",), "token", "tokens with a > 0", stacked=True),
    "total_min": Spec(("channel",), "activation", "the lowest a over all calibration tokens", stacked=True),
    "n_above_floor": Spec(("channel",), "token", "tokens with |a| > 1e-6", stacked=True),
    "sketch_count": Spec(
        ("channel", "bin"), "token", "values of |a| in each bin; neuronrank.sketch.EDGES has the edges"
    ),
    "sketch_negative_count": Spec(("channel", "bin"), "token", "the same, of negative a only"),
    "quantiles": Spec(
        ("quantile", "channel"),
        "activation",
        f"quantiles {QUANTILES} of |a|, within 2.2 %",
        stacked=True,
        kept_bits=8,
        derived=True,
    ),
    "top_tenth_mean": _derived(
        "activation", "mean of the largest tenth of |a| over all calibration tokens, within 1.3 %"
    ),
    "n_above_pooled": _derived("token", "tokens with |a| above the edge nearest to the 0.6 quantile of the tap"),
    "n_above_mean": _derived("token", "tokens with |a| above the edge nearest to the channel's own mean of |a|"),
    "class_sum": Spec(("class", "channel"), "activation", "a over the tokens of each class", kept_bits=11),
    "class_centred_sq": Spec(
        ("class", "channel"), "activation^2", "(a - mean of the class)^2 over the tokens of each class", kept_bits=8
    ),
    "class_between": _derived("activation^2", "variance between classes, 512 at most: sum_k p_k (m_k - mu)^2"),
    "class_within": _derived("activation^2", "variance within classes, 512 at most: sum_k p_k v_k"),
    "class_mean_variance": _derived("activation^2", "unweighted variance of class means, of 512 classes at most"),
    "class_qda": _derived("1", "quadratic discriminant of 512 classes at most: sum_k p_k (m_k - mu)^2 / (v_k + 1e-10)"),
    "class_pca_qda": _derived(
        "1",
        "quadratic discriminant of 512 classes at most, projected on 128 principal components of their means at most: "
        "sum_r u_rc^2 sum_k p_k z_kr^2 / (v_kr + 1e-10)",
    ),
    "topic_sum": Spec(("topic", "channel"), "activation", "a over the tokens of each micro-topic", kept_bits=9),
    "topic_sum_abs": Spec(("topic", "channel"), "activation", "|a| over the tokens of each micro-topic", kept_bits=9),
    "topic_max_abs": Spec(("topic", "channel"), "activation", "the largest |a| in each micro-topic", kept_bits=9),
    "n_tokens": Spec(("document",), "token", "tokens of each document that are routed to the expert", stacked=True),
    "class_count": Spec(("class",), "token", "tokens of each class that are routed to the expert", stacked=True),
    "topic_count": Spec(("topic",), "token", "tokens of each micro-topic that are routed to the expert", stacked=True),
    "topic_tf": _derived("activation", "mean over merged topics, 64 at most, of their means of |a|"),
    "topic_df_count": _derived(
        "topic", "of 64 topics at most, those whose mean |a| reaches the 0.6 quantile pooled over the tap"
    ),
    "gram": Spec(("channel", "channel"), "activation^2", "X^T X over all calibration tokens"),
    "labels": Spec(("document", "token"), "micro-topic", "the micro-topic of each token"),
    "centroids": Spec(
        ("topic", "projected"), "cosine", "unit centroids of the projected residual stream", stacked=True
    ),
    "count": Spec(("topic",), "token", "tokens of each micro-topic", stacked=True),
    "merges": Spec(("step", "pair"), "cluster", "which two clusters merge; step i makes cluster K + i", stacked=True),
    "nearest": Spec(
        ("topic", "rank", "document and token"),
        "index",
        "the tokens nearest to each centroid; 2^32 - 1 where a topic has fewer",
        stacked=True,
    ),
}
"""Name -> what it is. `n_tokens`, `class_count` and `topic_count` are held of experts only."""

TOKEN_IDS = "token_ids"
"""Path of the calibration tokens."""

OF_ALL_LAYERS: Mapping[str, str] = {
    TOKEN_IDS: "the calibration tokens",
    "classes/token_ids": "the token that each class is, most frequent first",
    "classes/count": "tokens of each class; the last, all other tokens",
}
"""Path -> definition of the arrays without a layer axis, which the store describes by axes and units alone."""
