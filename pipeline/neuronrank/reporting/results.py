"""What was measured, gathered: one row per text, pattern and recipe."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.comparison import Ratio, perplexity, perplexity_ratio
from neuronrank.errors import ParamsError
from neuronrank.files import read_json
from neuronrank.losses import read_losses, read_losses_header, require_comparable
from neuronrank.mask_store import MaskFile
from neuronrank.reporting.params import ReportParams, SequentialParams, SweepParams

_RUN = "dvc repro"
_SEQUENTIAL = "_sequential"
"""Ends the name of a recipe that was done layer by layer; its pruning holds its calibration."""
Losses = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Inputs:
    """Directories that the report reads: `<recipe>/<pattern>` below each, `<recipe>` for scores."""

    losses: Path
    masks: Path
    scores: Path
    score_metrics: Path
    prune_metrics: Path
    eval_metrics: Path

    def mask(self, recipe: str, pattern: str) -> MaskFile:
        """Open the mask of one result.

        Raises:
            ArtifactError: missing or corrupt.
        """
        return MaskFile(self.masks / recipe / f"{pattern}.safetensors")


@dataclass(frozen=True)
class Row:
    """One recipe with one pattern on one text; None where a figure does not apply."""

    text: str
    pattern: str
    recipe: str
    perplexity: float
    to_dense: Ratio | None
    to_reference: Ratio | None
    sparsity: dict[str, float]
    seconds: dict[str, float]


def gather(inputs: Inputs, sweep: SweepParams, sequential: SequentialParams, options: ReportParams) -> list[Row]:
    """Return, for every text, the dense row and then every pattern and recipe, those done layer by layer last.

    Raises:
        ParamsError: the reference is not in the sweep.
        ArtifactError: a result of the sweep is missing.
        MismatchError: two results were measured on different windows.
    """
    if options.reference not in sweep.recipes:
        raise ParamsError(f"report.reference: {options.reference!r} is not in sweep.recipes, so it is never evaluated")
    dense = read_losses(inputs.losses / "dense.safetensors")
    pairs = [(recipe, pattern) for pattern in sweep.patterns for recipe in sweep.recipes]
    pairs += [(f"{recipe}{_SEQUENTIAL}", pattern) for pattern in sequential.patterns for recipe in sequential.recipes]
    losses = {pair: _comparable_losses(inputs, *pair) for pair in pairs}
    rows = []
    for text, values in dense.items():
        seconds = {"eval": float(read_json(inputs.eval_metrics / "dense.json", _RUN)["seconds"])}
        nothing = {"selected": 0.0, "linears": 0.0, "model": 0.0}
        rows.append(Row(text, "none", "dense", perplexity(values), None, None, nothing, seconds))
        for (recipe, pattern), measured in losses.items():
            compared = None if recipe == options.reference else losses.get((options.reference, pattern))
            reference = None if compared is None else compared[text]
            rows.append(
                Row(
                    text,
                    pattern,
                    recipe,
                    perplexity(measured[text]),
                    perplexity_ratio(measured[text], values, options.seed),
                    None if reference is None else perplexity_ratio(measured[text], reference, options.seed),
                    inputs.mask(recipe, pattern).header["sparsity"],
                    _seconds(inputs, recipe, pattern),
                )
            )
    return rows


def compared_sequentially(rows: list[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Return `<recipe>/<pattern>` -> text -> perplexity over the reference's, of what was done layer by layer."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        if row.recipe.endswith(_SEQUENTIAL) and row.to_reference:
            ratio = {name: round(value, 4) for name, value in asdict(row.to_reference).items()}
            found.setdefault(f"{row.recipe}/{row.pattern}", {})[row.text] = ratio
    return found


def _comparable_losses(inputs: Inputs, recipe: str, pattern: str) -> Losses:
    dense, path = inputs.losses / "dense.safetensors", inputs.losses / recipe / f"{pattern}.safetensors"
    require_comparable(path, read_losses_header(path), dense, read_losses_header(dense))
    return read_losses(path)


def _seconds(inputs: Inputs, recipe: str, pattern: str) -> dict[str, float]:
    files = {
        **({} if recipe.endswith(_SEQUENTIAL) else {"score": inputs.score_metrics / f"{recipe}.json"}),
        "prune": inputs.prune_metrics / recipe / f"{pattern}.json",
        "eval": inputs.eval_metrics / recipe / f"{pattern}.json",
    }
    return {stage: float(read_json(path, _RUN)["seconds"]) for stage, path in files.items()}


def flat(row: Row) -> dict[str, str | float]:
    """Return a row as plain columns, empty where a figure does not apply."""
    columns: dict[str, str | float] = {
        "text": row.text,
        "pattern": row.pattern,
        "recipe": row.recipe,
        "perplexity": row.perplexity,
    }
    for name, ratio in (("to_dense", row.to_dense), ("to_reference", row.to_reference)):
        for field in fields(Ratio):
            columns[f"{name}_{field.name}"] = getattr(ratio, field.name) if ratio else ""
    columns |= {f"sparsity_{name}": share for name, share in row.sparsity.items()}
    columns |= {f"{stage}_seconds": row.seconds.get(stage, "") for stage in ("score", "prune", "eval")}
    return columns


def protocol(inputs: Inputs, sweep: SweepParams) -> dict[str, str]:
    """Return what the results were measured on, as the artifacts themselves recorded it.

    Raises:
        ArtifactError: the dense model's losses or a mask are missing or corrupt.
    """
    losses = read_losses_header(inputs.losses / "dense.safetensors")
    mask = inputs.mask(sweep.recipes[0], sweep.patterns[0]).header
    calibration, collect = mask["calibration"], mask["collect"]
    source = losses["model"]["source"]
    name = source.get("id") or source.get("member") or source.get("path")
    texts = "; ".join(f"{name}: {_text(entry)}" for name, entry in sorted(losses["texts"].items()))
    return {
        "Model": f"{name} ({source['source']})",
        "Model fingerprint": losses["model"]["fingerprint"],
        "Calibration": (
            f"{_text(calibration)}, seed {calibration['seed']}, {collect['dtype']} forward, {collect['propagation']}"
        ),
        "Evaluation": f"{texts}; non-overlapping, mean token cross-entropy, {losses['dtype']} on {losses['device']}",
    }


def _text(entry: dict[str, Any]) -> str:
    return f"{entry['n_windows']} windows of {entry['window_tokens']} tokens from {_source(entry['source'])}"


def _source(params: dict[str, Any]) -> str:
    """Return what a person would call a source: its name, and which part of it."""
    details = [str(params[key]) for key in ("id", "pattern", "split") if params.get(key)]
    return " ".join([str(params["source"]), *details])
