"""Score factors and a pattern -> the mask file."""

import logging
import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.checkpoint import ModelArtifact
from neuronrank.errors import MismatchError
from neuronrank.mask_store import pack, write_masks
from neuronrank.module_views import write_view
from neuronrank.patterns import Pattern
from neuronrank.provenance import in_words, made_from
from neuronrank.pruning import ModuleMask, iter_masks, modules_with_idle_factor, pruned_head, unscored_lines
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
        `sparsity` (realised, of three denominators), `removed` weights, `parts` (counts), `modules` (counts), and
        `made_from`: the identities of the mask and of what it was made from.

    Raises:
        ParamsError, MismatchError, NotFiniteError, DegenerateError: see `iter_masks`.
        StorageError: the disk refused a write.
    """
    _require_its_pattern(header, pattern)
    for line in unscored_lines(header, pattern):
        log.info("%s", line)
    modules: list[dict[str, Any]] = []
    packed: dict[str, NDArray[np.uint8]] = {}
    shapes: dict[str, list[int]] = {}
    for weight, kept, masks in whole_weights(model, iter_masks(model, factors, header, pattern)):
        packed[weight], shapes[weight] = pack(kept), list(kept.shape)
        for mask in masks:
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
    carried = ("recipe", "parts", "n_layers", "model", "calibration", "collect", "versions")
    provenance = {key: header[key] for key in carried if key in header}  # earlier scores had no versions
    described = {"name": name, **pattern.params.model_dump(mode="json")}
    details = {"pattern": described, "modules": modules, "shapes": shapes, "sparsity": sparsity, "untied": untied}
    chain = made_from(header, "scores")
    seal = write_masks(out, packed, {**provenance, **details, "made_from": chain})
    removed = sum(module["n_removed"] for module in modules)
    counts = {"removed": removed, "parts": part_counts(modules), "modules": modules}
    told = {"made_from": {**chain, "masks": seal}, "provenance": in_words(header)}
    return {"sparsity": sparsity, **counts, **told}


def _require_its_pattern(header: dict[str, Any], pattern: Pattern) -> None:
    """Refuse another pattern than the one by which layers were pruned while the statistics were collected."""
    sequential = header["collect"].get("sequential")
    if sequential and sequential["pattern"] != pattern.params.model_dump(mode="json"):
        raise MismatchError(
            f"scores of {header['recipe']!r}: their statistics were collected through layers pruned with another "
            f"pattern ({sequential['pattern']}) and serve that one alone. Use scores of dense statistics"
        )


def whole_weights(
    model: ModelArtifact, masks: Iterable[ModuleMask]
) -> Iterator[tuple[str, NDArray[np.bool_], list[ModuleMask]]]:
    """Join the masks of modules that share a weight; those of one weight come one after the other.

    Yields:
        The weight's name, its mask in the shape that it is stored in, True = kept, and the modules' own.
    """
    for weight, sharing in groupby(masks, lambda mask: mask.entry["weight"]):
        found = list(sharing)
        stored = model.tensors.get(weight)  # that of an untied head is not there yet
        kept = np.ones(found[0].entry["shape"] if stored is None else stored["shape"], dtype=np.bool_)
        for mask in found:
            write_view(kept, mask.entry, mask.keep)
        yield weight, kept, found
