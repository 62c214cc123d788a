"""Score factors and a pattern -> the mask file."""

import logging
import math
from pathlib import Path
from typing import Any

from neuronrank.checkpoint import ModelArtifact
from neuronrank.mask_store import pack, write_masks
from neuronrank.patterns import Pattern
from neuronrank.pruning import iter_masks, modules_with_idle_factor, pruned_head, unscored_lines
from neuronrank.realised import module_line, part_counts, realised_sparsity, summary_lines
from neuronrank.score_store import Factors

log = logging.getLogger("neuronrank")


def make_masks(
    model: ModelArtifact, factors: Factors, header: dict[str, Any], pattern: Pattern, name: str, out: Path
) -> dict[str, Any]:
    """Choose which weights to remove, log what is removed of every module, and write the mask file.

    Args:
        model: whose weights are scored.
        factors: of `compute_factors`.
        header: of the scores.
        pattern: rule and selection.
        name: of the pattern.
        out: file to write.

    Returns:
        `sparsity` (realised, of three denominators), `removed` weights, `parts` (counts), `modules` (counts).

    Raises:
        ParamsError, MismatchError, NotFiniteError, DegenerateError: see `iter_masks`.
        StorageError: the disk refused a write.
    """
    for line in unscored_lines(header, pattern):
        log.info("%s", line)
    modules, packed = [], {}
    for mask in iter_masks(model, factors, header, pattern):
        packed[mask.weight] = pack(mask.keep)
        modules.append(mask.describe())
        log.info("%s", module_line(modules[-1]))
    for line in summary_lines(modules):
        log.info("%s", line)
    idle = modules_with_idle_factor(factors, header, pattern)
    if idle:
        log.info(
            "in %d of %d modules the factor lies on rows and cannot change an order within rows", idle, len(modules)
        )
    head = pruned_head(model, header, pattern)
    untied = {} if head is None else head.untied
    n_parameters = model.n_parameters + (math.prod(head.shape) if head and untied else 0)
    sparsity = realised_sparsity(modules, header, n_parameters)
    provenance = {key: header[key] for key in ("recipe", "parts", "model", "calibration", "collect")}
    described = {"name": name, **pattern.params.model_dump(mode="json")}
    details = {"pattern": described, "modules": modules, "sparsity": sparsity, "untied": untied}
    write_masks(out, packed, {**provenance, **details})
    removed = sum(module["n_removed"] for module in modules)
    return {"sparsity": sparsity, "removed": removed, "parts": part_counts(modules), "modules": modules}
