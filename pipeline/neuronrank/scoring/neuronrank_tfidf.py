"""NeuronRank TF-IDF: |W_ij|^weight_exp * TF_c^tf_exp * IDF_c^idf_exp * R_c^spikiness_exp.

Mode `doc`: TF_c is the mean of |a_c| over all tokens; DF_c the number of documents in which the mean of |a_c| reaches
the threshold; IDF_c = ln((N + 1) / (DF_c + 1)) + 1. Mode `topic`: the same with the non-empty topics in place of
documents, TF_c the mean of their means. The threshold is the q_active quantile pooled over documents (topics) and
channels; or kappa times the channel's mean over them; or `sign`: the document's mean of a is positive. A larger IDF
means rarer: idf_exp > 0 favours specialists, idf_exp < 0 generalists.
`axis` chooses the channels: the module's neurons; their pre-activations (`gate_pre`, in the MLP); or the module's
input, where the factor lies on columns as in Wanda.

Source: METHODS section 3.4.
Differs: earlier single-script versions took each channel's own quantile as its threshold, which gives every channel
the same document frequency, so that their IDF could not change a mask. A factor on rows (q, k, v, gate, up; axis
`neuron`) cannot change the order within a row: with row groups and n:m it does nothing there.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from neuronrank.scoring import Channels, Element, SampledParams
from neuronrank.selectivity import SpikinessParams, ThresholdParams, active_groups, require_varying, spikiness
from neuronrank.tap_statistics import TapStatistics
from neuronrank.topic_merging import TopicSums

PARTS = ("attention", "mlp")
READS = "sum_abs of neurons per document or per topic; with axis: input, of inputs; sketch when spikiness_exp is not 0"
DEFAULT_GROUP = "module"
_GROUPS = {"doc": "documents", "topic": "topics"}


class Params(SampledParams, ThresholdParams, SpikinessParams):
    """Exponents, mode and threshold."""

    mode: Literal["doc", "topic"] = "doc"
    """Whether TF and DF count documents or topics."""
    topics: PositiveInt = 64
    """Of mode `topic`: at most as many as the artifact has micro-topics."""
    axis: Channels = "neuron"
    """Whose channels carry the factor: the module's neurons, their pre-activations, or the module's input."""
    tf_exp: float = Field(default=1.0, allow_inf_nan=False)
    """Exponent of TF; 0 leaves it out."""
    idf_exp: float = Field(default=1.0, allow_inf_nan=False)
    """Exponent of IDF; above 0 favours specialists, below 0 generalists, 0 leaves it out."""
    spikiness_exp: float = Field(default=0.0, allow_inf_nan=False)
    """Exponent of R; 0 leaves it out."""


def element(part: str, params: Params) -> Element:
    """Score single weights, with a factor per channel of the axis."""
    del part
    has_factor = params.tf_exp or params.idf_exp or params.spikiness_exp
    return Element(params.weight_exp, params.axis if has_factor else None)


def channel_factor(tap: TapStatistics, params: Params) -> NDArray[np.float64]:
    """Return TF^tf_exp * IDF^idf_exp * R^spikiness_exp, (C,), activation^tf_exp.

    Raises:
        DegenerateError: every channel has the same frequency, so that IDF ranks nothing.
    """
    if params.mode == "doc" and not params.idf_exp:
        factor = (tap.total("sum_abs") / tap.n) ** params.tf_exp
    else:
        frequency, n_active, n_groups = _by_document(tap, params) if params.mode == "doc" else _by_topic(tap, params)
        factor = frequency**params.tf_exp
        if params.idf_exp != 0:
            require_varying(n_active, tap.where, f"{n_groups} {_GROUPS[params.mode]}")
            factor = factor * (np.log((n_groups + 1) / (n_active + 1)) + 1) ** params.idf_exp
    if params.spikiness_exp != 0:
        factor = factor * spikiness(tap, params) ** params.spikiness_exp
    return np.asarray(factor)


def _by_document(tap: TapStatistics, params: Params) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    """Return TF (C,), in how many documents each channel is active (C,), and the number of documents."""
    frequency = tap.total("sum_abs") / tap.n
    if params.threshold == "pooled":
        return frequency, tap.document_frequency(params.q_active), tap.n_documents
    signed = tap.documents("sum") if params.threshold == "sign" else None
    return frequency, active_groups(tap.document_means("sum_abs"), signed, params), tap.n_documents


def _by_topic(tap: TapStatistics, params: Params) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    """Return the mean of the topics' means (C,), in how many each channel is active (C,), and how many have tokens."""
    k = params.topics
    frequency, seen = tap.of_topics(TopicSums.mean_of_means, k), tap.topic_count(k) > 0
    if params.threshold == "pooled":
        return frequency, tap.of_topics(TopicSums.frequency, k, quantile=params.q_active), int(seen.sum())
    signed = tap.topics(k, "sum").sums[seen] if params.threshold == "sign" else None
    return frequency, active_groups(tap.topics(k, "sum_abs").means, signed, params), int(seen.sum())
