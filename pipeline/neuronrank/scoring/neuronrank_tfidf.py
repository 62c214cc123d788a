"""NeuronRank TF-IDF: |W_ij|^weight_exp * TF_c^tf_exp * IDF_c^idf_exp on the channel axis of the module's neurons.

TF_c is the mean of |a_c| over all calibration tokens. IDF_c = ln((N + 1) / (DF_c + 1)) + 1, with DF_c the number of
documents in which the mean of |a_c| reaches a threshold: the q_active quantile pooled over all documents and channels
of the tap. A larger IDF means rarer: idf_exp > 0 favours specialists, idf_exp < 0 generalists.

Source: METHODS section 3.4, mode `doc`.
Differs: earlier single-script versions took each channel's own quantile as its threshold, which gives every channel
the same document frequency, so that their IDF could not change a mask.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from neuronrank.errors import DegenerateError
from neuronrank.scoring import MethodParams
from neuronrank.statistics_store import TapStatistics

TAP = "neuron"
STATISTICS = ("sum_abs",)
DEFAULT_GROUP = "module"


class Params(MethodParams):
    """Exponents and the activity threshold."""

    mode: Literal["doc"] = "doc"
    tf_exp: float = Field(default=1.0, allow_inf_nan=False)
    idf_exp: float = Field(default=1.0, allow_inf_nan=False)
    q_active: float = Field(default=0.6, gt=0, lt=1)
    """A document counts as active above this quantile, pooled over the tap's documents and channels."""


def channel_factor(tap: TapStatistics, params: Params) -> NDArray[np.float64]:
    """Return TF^tf_exp * IDF^idf_exp per neuron.

    Args:
        tap: the module's neurons.
        params: exponents and threshold.

    Returns:
        (C,), activation^tf_exp.

    Raises:
        DegenerateError: every channel has the same document frequency, so that IDF ranks nothing.
    """
    term_frequency = tap.total("sum_abs") / (tap.n_documents * tap.n_tokens)
    factor = term_frequency**params.tf_exp
    if params.idf_exp != 0:
        frequency = tap.document_frequency(params.q_active)
        if frequency.size > 1 and (frequency == frequency[0]).all():
            raise DegenerateError(
                f"{tap.where}: all {frequency.size} channels are active in {frequency[0]} of {tap.n_documents} "
                f"documents, so that IDF cannot rank them. Use more documents, another q_active, or idf_exp: 0"
            )
        idf = np.log((tap.n_documents + 1) / (frequency + 1)) + 1
        factor = factor * idf**params.idf_exp
    return np.asarray(factor)
