"""Scores x weights -> masks: the weights are read tensor by tensor, the model is never built."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neuronrank.checkpoint import ModelArtifact
from neuronrank.errors import DegenerateError, MismatchError, NotFiniteError, ParamsError
from neuronrank.masks import MaskedModule
from neuronrank.patterns import Pattern
from neuronrank.score_store import Factors

Scores = NDArray[np.float32]
Vector = NDArray[np.float32]


@dataclass(frozen=True)
class ModuleMask:
    """The mask of one module."""

    name: str
    weight: str
    part: str
    layer: int
    keep: NDArray[np.bool_]
    """(O, I), True = kept."""

    @property
    def n_removed(self) -> int:
        """Number of weights removed."""
        return int(self.keep.size - np.count_nonzero(self.keep))

    def describe(self) -> dict[str, Any]:
        """Return the module's entry of the mask file's header."""
        entry = {"name": self.name, "weight": self.weight, "part": self.part, "layer": self.layer}
        return {**entry, "shape": list(self.keep.shape), "n_removed": self.n_removed}


def selected_modules(header: dict[str, Any], pattern: Pattern) -> list[dict[str, Any]]:
    """Return the entries of the modules that a pattern prunes, in the model's order.

    Raises:
        ParamsError: the pattern names more layers than the model has.
    """
    if (pattern.params.pruning_last or 0) > header["n_layers"]:
        raise ParamsError(f"pruning_last {pattern.params.pruning_last}: the model has {header['n_layers']} layers")
    return [m for m in header["modules"] if pattern.selects(m["part"], m["layer"], header["n_layers"])]


def iter_masks(
    model: ModelArtifact, factors: Factors, header: dict[str, Any], pattern: Pattern
) -> Iterator[ModuleMask]:
    """Yield the mask of every selected module, in the model's order.

    Args:
        model: whose weights are scored.
        factors: of `compute_factors`.
        header: of the scores: modules, methods, provenance.
        pattern: rule and selection.

    Raises:
        MismatchError: the scores come from another model, or a shape does not fit.
        NotFiniteError: a weight or a score is NaN or infinite.
        DegenerateError: all scores of a group are equal by construction.
    """
    if header["model"]["fingerprint"] != model.fingerprint:
        raise MismatchError(
            f"scores of {header['recipe']!r}: made for model {header['model']['fingerprint'][:12]}…, "
            f"{model.directory} holds {model.fingerprint[:12]}…. Run: dvc repro collect score"
        )
    selected = selected_modules(header, pattern)
    checkpoint = model.checkpoint()
    for module in selected:
        weight_name = f"{module['name']}.weight"
        weight = checkpoint.tensor(weight_name)
        part = header["parts"][module["part"]]
        masked = MaskedModule(module["name"], module["part"], part["default_group"])
        scores = _scores(masked, weight, factors, part["params"]["weight_exp"], pattern)
        keep = pattern.rule.keep(scores, pattern.params, masked)
        yield ModuleMask(module["name"], weight_name, module["part"], module["layer"], keep)


def _scores(
    module: MaskedModule, weight: torch.Tensor, factors: Factors, weight_exp: float, pattern: Pattern
) -> NDArray[np.float32]:
    """Return |W|^weight_exp times the factors, (O, I) float32; an exponent of 0 is a factor of exactly 1."""
    row, column = factors.get(f"{module.name}.row"), factors.get(f"{module.name}.column")
    for axis, factor in enumerate((row, column)):
        if factor is not None and factor.size != weight.shape[axis]:
            raise MismatchError(f"{module.name}: weight is {tuple(weight.shape)}, a factor has {factor.size} channels")
    magnitude = weight.float().abs()
    scores: Scores = (magnitude if weight_exp == 1 else magnitude**weight_exp).numpy()  # 0**0 is 1
    with np.errstate(all="ignore"):
        scores = scores if row is None else scores * row[:, None]
        scores = scores if column is None else scores * column[None, :]
    n_bad = scores.size - int(np.count_nonzero(np.isfinite(scores)))
    if n_bad:
        raise NotFiniteError(f"{module.name}: {n_bad} of {scores.size} scores are NaN or infinite. Lower the exponents")
    _require_ranking(module, scores, column, weight_exp, pattern)
    _require_no_underflow(module, scores, magnitude, row, column)
    return scores


def _require_ranking(
    module: MaskedModule, scores: Scores, column: Vector | None, weight_exp: float, pattern: Pattern
) -> None:
    flat = scores.reshape(-1)
    if flat.size > 1 and (flat == flat[0]).all():
        raise DegenerateError(f"{module.name}: all {flat.size} scores are equal ({flat[0]}), they cannot rank")
    if weight_exp == 0 and column is None and pattern.rule.within_rows(pattern.params, module):
        raise DegenerateError(
            f"{module.name}: with weight_exp 0 and no column factor all scores of a row are equal, and the pattern "
            f"compares within rows. Use weight_exp > 0, or group: module"
        )


def _require_no_underflow(
    module: MaskedModule, scores: Scores, magnitude: torch.Tensor, row: Vector | None, column: Vector | None
) -> None:
    """Refuse scores that became zero although neither weight nor factor is: they would be removed by position."""
    if scores.min() > 0:
        return
    possible = (magnitude > 0).numpy()
    for factor in (row[:, None] if row is not None else None, column):
        possible = possible if factor is None else possible & (factor > 0)
    n_lost = int(np.count_nonzero(possible & (scores == 0)))
    if n_lost:
        raise NotFiniteError(
            f"{module.name}: {n_lost} of {scores.size} scores are too small to tell from zero. Lower the exponents"
        )


def modules_with_idle_factor(factors: Factors, header: dict[str, Any], pattern: Pattern) -> int:
    """Count the modules whose only factor lies on rows while the pattern compares within rows: weights alone decide."""
    n_idle = 0
    for entry in selected_modules(header, pattern):
        module = MaskedModule(entry["name"], entry["part"], header["parts"][entry["part"]]["default_group"])
        only_rows = f"{module.name}.row" in factors and f"{module.name}.column" not in factors
        n_idle += only_rows and pattern.rule.within_rows(pattern.params, module)
    return n_idle


def realised_sparsity(masks: list[dict[str, Any]], header: dict[str, Any], n_parameters: int) -> dict[str, float]:
    """Return the share of weights removed, of three denominators.

    Args:
        masks: one entry per masked module, with `shape` and `n_removed`.
        header: of the scores; its modules are all decoder linears.
        n_parameters: of the whole model, embeddings and norms included, tied weights once.
    """
    removed = sum(entry["n_removed"] for entry in masks)
    return {
        "selected": removed / sum(_size(entry) for entry in masks),
        "linears": removed / sum(_size(entry) for entry in header["modules"]),
        "model": removed / n_parameters,
    }


def _size(entry: dict[str, Any]) -> int:
    return int(entry["shape"][0] * entry["shape"][1])
