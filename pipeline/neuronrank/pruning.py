"""Scores x weights -> masks: the weights are read tensor by tensor, the model is never built."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neuronrank.checkpoint import ModelArtifact, iter_described
from neuronrank.errors import DegenerateError, MismatchError, NotFiniteError
from neuronrank.masks import MaskedModule
from neuronrank.patterns import Pattern
from neuronrank.score_store import Factors


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
    """Return the entries of the modules that a pattern prunes, in the model's order."""
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
    weights = iter_described(model, [f"{module['name']}.weight" for module in selected])
    for module, (weight_name, weight) in zip(selected, weights, strict=True):
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
    if weight_exp not in (0, 1):
        magnitude = magnitude**weight_exp
    scores = np.ones(tuple(weight.shape), dtype=np.float32) if weight_exp == 0 else magnitude.numpy()
    with np.errstate(all="ignore"):
        scores = scores if row is None else scores * row[:, None]
        scores = scores if column is None else scores * column[None, :]
    n_bad = scores.size - int(np.count_nonzero(np.isfinite(scores)))
    if n_bad:
        raise NotFiniteError(f"{module.name}: {n_bad} of {scores.size} scores are NaN or infinite. Lower the exponents")
    if weight_exp == 0 and column is None:
        group = getattr(pattern.params, "group", "columns") or module.default_group
        if row is None or group != "module":
            raise DegenerateError(
                f"{module.name}: with weight_exp 0 and no column factor all scores of a {group} group are equal. "
                f"Use weight_exp > 0, or group: module"
            )
    return scores


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
