"""The score of every weight of one module, from its weights and the vectors that `score` wrote.

    S_ij = weight_multi * |W_ij|^weight_exp * row_i * column_j + row_term_i + column_term_j

in float32; a vector that the file does not hold is 1 (a factor) or 0 (a term). Nothing non-finite, negative or unable
to rank gets through.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neuronrank.errors import DegenerateError, MismatchError, NotFiniteError, ParamsError
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


@dataclass(frozen=True)
class _Vectors:
    row: Vector | None
    column: Vector | None
    row_term: Vector | None
    column_term: Vector | None


def weight_scores(name: str, weight: torch.Tensor, factors: Factors, part: dict[str, Any], group: str) -> Scores:
    """Return the score of every weight of a module.

    Args:
        name: of the module.
        weight: (O, I), any float type.
        factors: vectors by `<module>.<row, column, row_term or column_term>`.
        part: of the scores' header: `weight_exp`, an exponent of 0 is a factor of exactly 1, and `weight_multi`.
        group: what the weights will compete with; within rows, a score that is the same all along a row is refused.

    Returns:
        (O, I) float32, finite, >= 0; higher is kept.

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
    vectors = _vectors(name, weight, factors)
    row, column = vectors.row, vectors.column
    magnitude = weight.float().abs()
    weight_exp, weight_multi = part["weight_exp"], part["weight_multi"]
    scores: Scores = (magnitude if weight_exp == 1 else magnitude**weight_exp).numpy()  # 0**0 is 1
    with np.errstate(all="ignore"):
        scores = scores if weight_multi == 1 else scores * np.float32(weight_multi)
        scores = scores if row is None else scores * row[:, None]
        scores = scores if column is None else scores * column[None, :]
        scores = scores if vectors.row_term is None else scores + vectors.row_term[:, None]
        scores = scores if vectors.column_term is None else scores + vectors.column_term[None, :]
    _require_sound(name, scores, "Lower the exponents")
    _require_ranking(name, scores, vectors, part, group)
    if weight_multi > 0:
        _require_no_underflow(name, scores, magnitude, vectors, weight_exp)
    return scores


def neuron_scores(block: str, n_neurons: int, factors: Factors, part: dict[str, Any]) -> Vector:
    """Return the score of every MLP neuron of a layer or expert, (F,) float32, finite, >= 0; higher is kept.

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
    return scores


def _vectors(name: str, weight: torch.Tensor, factors: Factors) -> _Vectors:
    found = (factors.get(f"{name}.{kind}") for kind in ("row", "column", "row_term", "column_term"))
    vectors = _Vectors(*(None if vector is None else vector + np.float32(0) for vector in found))  # no -0.0
    for vector, size in (
        (vectors.row, weight.shape[0]),
        (vectors.column, weight.shape[1]),
        (vectors.row_term, weight.shape[0]),
        (vectors.column_term, weight.shape[1]),
    ):
        if vector is not None and vector.shape != (size,):
            raise MismatchError(f"{name}: weight is {tuple(weight.shape)}, a factor has {vector.size} channels")
    return vectors


def _require_sound(name: str, scores: Scores, advice: str) -> None:
    n_bad = scores.size - int(np.count_nonzero(np.isfinite(scores)))
    if n_bad:
        raise NotFiniteError(f"{name}: {n_bad} of {scores.size} scores are NaN or infinite. {advice}")
    n_negative = int(np.count_nonzero(scores < 0))
    if n_negative:
        raise NotFiniteError(f"{name}: {n_negative} of {scores.size} scores are negative; a score is 0 or more")


def _require_several(name: str, scores: Scores) -> None:
    flat = scores.reshape(-1)
    if flat.size > 1 and (flat == flat[0]).all():
        raise DegenerateError(f"{name}: all {flat.size} scores are equal ({flat[0]}), they cannot rank")


def _require_ranking(name: str, scores: Scores, vectors: _Vectors, part: dict[str, Any], group: str) -> None:
    _require_several(name, scores)
    product_varies = part["weight_multi"] != 0 and (part["weight_exp"] != 0 or vectors.column is not None)
    if group == "row" and not product_varies and vectors.column_term is None:
        raise DegenerateError(
            f"{name}: the score is the same all along a row, since only factors on rows "
            f"count, and the pattern compares within rows. Let the weights count, or compare within modules"
        )


def _require_no_underflow(
    name: str, scores: Scores, magnitude: torch.Tensor, vectors: _Vectors, weight_exp: float
) -> None:
    """Refuse scores that became zero although neither weight nor factor is: they would be removed by position."""
    n_zero = scores.size - int(np.count_nonzero(scores))
    if n_zero == 0:
        return
    is_product = weight_exp > 0 and vectors.row_term is None and vectors.column_term is None
    if is_product and n_zero == magnitude.numel() - int(torch.count_nonzero(magnitude)):
        return  # a weight of zero has a score of zero, and there are no others
    possible = (magnitude > 0).numpy()
    for factor in (vectors.row[:, None] if vectors.row is not None else None, vectors.column):
        possible = possible if factor is None else possible & (factor > 0)
    n_lost = int(np.count_nonzero(possible & (scores == 0)))
    if n_lost:
        raise NotFiniteError(
            f"{name}: {n_lost} of {scores.size} scores are too small to tell from zero. Lower the exponents"
        )
