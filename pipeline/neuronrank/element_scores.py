"""The score of every weight of one module, from its weights and the vectors that `score` wrote.

    S_ij = weight_multi * |W_ij|^weight_exp * row_i * column_j + row_term_i + column_term_j

in float32; a vector that the file does not hold is 1 (a factor) or 0 (a term). Nothing non-finite, negative or unable
to rank gets through.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neuronrank.errors import DegenerateError, MismatchError, NotFiniteError, ParamsError
from neuronrank.kernels import bits_of
from neuronrank.score_kernel import write_scores
from neuronrank.score_store import Factors

Scores = NDArray[np.float32]
Vector = NDArray[np.float32]
MAGNITUDE: dict[str, Any] = {
    "method": "magnitude",
    "default_group": "module",
    "elements": True,
    "weight_exp": 1.0,
    "weight_multi": 1.0,
}
"""How the output head is scored, whatever the recipe."""
_FIRST = 1024
"""Scores that are looked at first: in all but degenerate cases they differ already."""


def weight_scores(name: str, weight: torch.Tensor, factors: Factors, part: dict[str, Any], group: str) -> Scores:
    """Return the score of every weight of a module.

    Args:
        name: of the module.
        weight: (O, I), any float type.
        factors: vectors by `<module>.<row, column, row_term or column_term>`.
        part: of the scores' header: `weight_exp`, an exponent of 0 is a factor of exactly 1, and `weight_multi`.
        group: what the weights will compete with; within rows, a score that is the same all along a row is refused.

    Returns:
        (O, I) float32, finite, >= 0, without -0.0; higher is kept.

    Raises:
        ParamsError: the method ranks whole neurons only.
        MismatchError: a vector's length is not the module's.
        NotFiniteError: a score is NaN, infinite, negative, or too small to tell from zero.
        DegenerateError: the scores are equal by construction.
    """
    if not part["elements"]:
        raise ParamsError(
            f"{name}: method {part['method']!r} ranks whole neurons, not single weights. Use a pattern with "
            f"rule: structured"
        )
    rows, columns = _vectors(name, weight, factors)
    weight_exp, weight_multi = part["weight_exp"], part["weight_multi"]
    bits = bits_of(weight)
    powered = bits if weight_exp == 1 else bits_of(weight.float().abs() ** weight_exp)  # 0**0 is 1
    scores = np.empty(weight.shape, dtype=np.float32)
    n_unsound, n_lost = write_scores(bits, powered, np.float32(weight_multi), rows, columns, scores)
    if n_unsound:
        _require_sound(name, scores, "Lower the exponents")
    _require_ranking(name, scores, factors, part, group)
    if n_lost and weight_multi > 0:  # they would be removed by position
        raise NotFiniteError(
            f"{name}: {n_lost} of {scores.size} scores are too small to tell from zero. Lower the exponents"
        )
    return scores


def neuron_scores(block: str, n_neurons: int, factors: Factors, part: dict[str, Any]) -> Vector:
    """Return the scores of the neurons of an MLP or expert, (F,) float32, as `weight_scores` does those of weights.

    Raises:
        ParamsError: the recipe's method has no neuron score.
        MismatchError: there are not as many scores as neurons.
        NotFiniteError: a score is NaN, infinite or negative.
        DegenerateError: all scores are equal.
    """
    name = f"neurons.{block}"
    if name not in factors:
        raise ParamsError(
            f"method {part['method']!r} has no neuron score, and the pattern removes whole neurons; "
            f"run `neuronrank methods` to see which have one"
        )
    scores = factors[name]
    if scores.shape != (n_neurons,):
        raise MismatchError(
            f"{name}: holds {scores.size} scores, the MLP has {n_neurons} neurons. Run: dvc repro score"
        )
    _require_sound(name, scores, "Lower the exponents")
    _require_several(name, scores)
    return scores + np.float32(0)  # no -0.0


def _vectors(name: str, weight: torch.Tensor, factors: Factors) -> tuple[tuple[Vector, Vector], tuple[Vector, Vector]]:
    """Return factor and term of rows, (O,) each, and of columns, (I,) each."""
    n_out, n_in = weight.shape
    found = {}
    for kind, size in (("row", n_out), ("column", n_in), ("row_term", n_out), ("column_term", n_in)):
        absent = np.full(size, 0 if kind.endswith("term") else 1, dtype=np.float32)
        found[kind] = factors.get(f"{name}.{kind}", absent) + np.float32(0)  # no -0.0
        if found[kind].shape != (size,):
            raise MismatchError(f"{name}: weight is {tuple(weight.shape)}, a factor has {found[kind].size} channels")
    return (found["row"], found["row_term"]), (found["column"], found["column_term"])


def _require_sound(name: str, scores: Scores, advice: str) -> None:
    n_bad = scores.size - int(np.count_nonzero(np.isfinite(scores)))
    if n_bad:
        raise NotFiniteError(f"{name}: {n_bad} of {scores.size} scores are NaN or infinite. {advice}")
    n_negative = int(np.count_nonzero(scores < 0))
    if n_negative:
        raise NotFiniteError(f"{name}: {n_negative} of {scores.size} scores are negative; a score is 0 or more")


def _require_several(name: str, scores: Scores) -> None:
    flat = scores.reshape(-1)
    if flat.size > 1 and (flat[:_FIRST] == flat[0]).all() and (flat == flat[0]).all():
        raise DegenerateError(f"{name}: all {flat.size} scores are equal ({flat[0]}), they cannot rank")


def _require_ranking(name: str, scores: Scores, factors: Factors, part: dict[str, Any], group: str) -> None:
    _require_several(name, scores)
    product_varies = part["weight_multi"] != 0 and (part["weight_exp"] != 0 or f"{name}.column" in factors)
    if group == "row" and not product_varies and f"{name}.column_term" not in factors:
        raise DegenerateError(
            f"{name}: the score is the same all along a row, since only factors on rows "
            f"count, and the pattern compares within rows. Let the weights count, or compare within modules"
        )
