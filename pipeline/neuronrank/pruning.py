"""Scores x weights -> masks: the weights are read tensor by tensor, the model is never built."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import starmap, zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neuronrank.checkpoint import Checkpoint, ModelArtifact
from neuronrank.element_scores import MAGNITUDE, Scores, neuron_scores, weight_scores
from neuronrank.errors import MismatchError, ParamsError
from neuronrank.files import canonical_json
from neuronrank.masks import MaskedModule, n_removed
from neuronrank.masks._radix_select import Cut, find_cut
from neuronrank.module_views import view_of
from neuronrank.output_head import OutputHead, find_output_head
from neuronrank.patterns import Pattern
from neuronrank.realised import require_share
from neuronrank.score_store import Factors
from neuronrank.tap_names import base, block

NEURONS = "neuron"
"""The tap of the MLP's neurons: its modules are those that a rule of whole neurons prunes."""
Entry = dict[str, Any]


@dataclass(frozen=True)
class ModuleMask:
    """The mask of one module."""

    entry: Entry
    """Of the scores' header, or of the output head; its layer is None."""
    keep: NDArray[np.bool_]
    """(O, I), True = kept."""
    neuron_axis: str | None = None
    """Where whole neurons lie, "row" or "column", when the mask removes whole neurons."""

    @property
    def n_removed(self) -> int:
        """Number of weights removed."""
        return int(self.keep.size - np.count_nonzero(self.keep))

    def describe(self) -> Entry:
        """Return the module's entry of the mask file's header."""
        entry = {key: self.entry[key] for key in ("name", "weight", "rows", "transposed", "part", "layer", "shape")}
        whole = self.neuron_axis is not None
        neurons = {"neuron_axis": self.neuron_axis, "block": _block(self.entry)} if whole else {}
        return {**entry, **neurons, "n_removed": self.n_removed}


def _block(entry: Entry) -> str:
    """Return which MLP a module's neurons belong to: `3` of a layer, `3.7` of an expert."""
    return block(entry["layer"], entry["neuron_tap"])


def selected_modules(header: dict[str, Any], pattern: Pattern) -> list[Entry]:
    """Return the entries of the decoder modules that a pattern prunes, in the model's order.

    A part that the recipe does not score is left dense; `unscored_lines` says so.

    Raises:
        ParamsError: the pattern names more layers than the model has, or nothing is left to prune.
    """
    last, n_layers = pattern.params.pruning_last, header["n_layers"]
    if last is not None and last > n_layers:
        raise ParamsError(f"pruning_last {last}: the model has {n_layers} layers; give at most so many")
    chosen = [m for m in header["modules"] if pattern.selects(m["part"], m["layer"], n_layers)]
    if pattern.rule.RANKS == "neurons":
        chosen = [module for module in chosen if base(module["neuron_tap"]) == NEURONS]
    selected = [module for module in chosen if module["part"] in header["parts"]]
    if not (selected or pattern.params.lm_head):
        wanted = ", ".join(dict.fromkeys(module["part"] for module in chosen)) or "no module of this model"
        raise ParamsError(
            f"nothing to prune: recipe {header['recipe']!r} scores {', '.join(header['parts']) or 'nothing'}, the "
            f"pattern prunes {wanted}. Choose a recipe and a pattern that share a part"
        )
    return selected


def unscored_lines(header: dict[str, Any], pattern: Pattern) -> list[str]:
    """Return a log line for every part that the pattern would prune but the recipe does not score."""
    parts = dict.fromkeys(
        module["part"]
        for module in header["modules"]
        if pattern.selects(module["part"], module["layer"], header["n_layers"])
    )
    return [
        f"{part}: not scored by recipe {header['recipe']!r}, left dense"
        for part in parts
        if part not in header["parts"]
    ]


def pruned_head(model: ModelArtifact, header: dict[str, Any], pattern: Pattern) -> OutputHead | None:
    """Return the output head as the pattern prunes it; None when it stays dense.

    Raises:
        MismatchError: it is tied to the embeddings, and the pattern does not untie it.
    """
    if not pattern.params.lm_head:
        return None
    return find_output_head(model, header["lm_head"], pattern.params.untie_lm_head)


def iter_masks(
    model: ModelArtifact, factors: Factors, header: dict[str, Any], pattern: Pattern
) -> Iterator[ModuleMask]:
    """Yield the mask of every selected module in the model's order, the output head last.

    One module's scores and mask are in memory at a time, also where modules compete with each other, and the weights
    of the next.

    Args:
        model: whose weights are scored.
        factors: of `compute_factors`.
        header: of the scores: modules, methods, provenance.
        pattern: rule and selection.

    Raises:
        ParamsError: nothing is left to prune, or the method has no neuron score that the rule needs.
        MismatchError: the scores come from another model, a shape does not fit, the output head is tied, or a mask
            does not remove what was asked for.
        NotFiniteError: a weight or a score is NaN or infinite.
        DegenerateError: all scores of a group are equal by construction, or no mask comes near the request.
    """
    if header["model"]["fingerprint"] != model.fingerprint:
        raise MismatchError(
            f"scores of {header['recipe']!r}: made for model {header['model']['fingerprint'][:12]}…, "
            f"{model.directory} holds {model.fingerprint[:12]}…. Run: dvc repro collect score"
        )
    selected, head = selected_modules(header, pattern), pruned_head(model, header, pattern)
    work = _Work(model.checkpoint(), factors, header, pattern)
    if pattern.rule.RANKS == "neurons":
        yield from map(work.mask_of_neurons, selected)
        return
    pools: dict[tuple[Any, ...], _Pool] = {}
    for entry, weight in work.weights(selected):
        key = work.pool_key(entry)
        if key is None:
            yield ModuleMask(entry, work.checked(work.masked(entry), work.scores(entry, weight)))
            continue
        if key not in pools:
            pools[key] = _fill_pool(work, [other for other in selected if work.pool_key(other) == key])
        yield _pooled_mask(entry, work.scores(entry, weight), pools[key])
    for pool in pools.values():
        require_share(pool.what, pool.n_removed, pool.size, pool.sparsity, tolerance=1)
    if head is not None:
        yield _head_mask(work, head)


@dataclass(frozen=True)
class _Work:
    """What the mask of a module is made from."""

    checkpoint: Checkpoint
    factors: Factors
    header: dict[str, Any]
    pattern: Pattern

    def part(self, entry: Entry) -> dict[str, Any]:
        """Return how the module's part is scored."""
        part: dict[str, Any] = self.header["parts"][entry["part"]]
        return part

    def masked(self, entry: Entry) -> MaskedModule:
        """Return what the rule may know of a module."""
        return MaskedModule(entry["name"], entry["part"], self.part(entry)["default_group"])

    def group(self, entry: Entry) -> str:
        """Return what the module's weights compete with."""
        return str(self.pattern.rule.group(self.pattern.params, self.masked(entry)))

    def pool_key(self, entry: Entry) -> tuple[Any, ...] | None:
        """Return what the modules of one pool have in common; None for a module that has its own groups."""
        group = self.group(entry)
        if group not in ("layer", "global"):
            return None
        sparsity = self.pattern.rule.sparsity(self.pattern.params, self.masked(entry))
        return (entry["layer"] if group == "layer" else None, canonical_json(self.part(entry)), sparsity)

    def weights(self, entries: list[Entry]) -> Iterator[tuple[Entry, torch.Tensor]]:
        """Yield every module with its weights, (O, I); a thread reads and checks the next ones meanwhile."""
        with ThreadPoolExecutor(1) as thread:
            reading = [thread.submit(self._weight, entry) for entry in entries[:1]]
            for entry, following in zip_longest(entries, entries[1:]):
                weight = reading.pop().result()
                if following is not None:
                    reading.append(thread.submit(self._weight, following))
                yield entry, weight

    def _weight(self, entry: Entry) -> torch.Tensor:
        weight: torch.Tensor = view_of(self.checkpoint.tensor(entry["weight"]), entry)
        return weight

    def scores(self, entry: Entry, weight: torch.Tensor) -> Scores:
        """Return the scores of a module's weights, (O, I)."""
        return weight_scores(entry["name"], weight, self.factors, self.part(entry), self.group(entry))

    def mask_of_neurons(self, entry: Entry) -> ModuleMask:
        """Return the mask of a module by the scores of its neurons."""
        axis, shape = entry["neuron_axis"], entry["shape"]
        n_neurons = shape[0] if axis == "row" else shape[1]
        scores = neuron_scores(_block(entry), n_neurons, self.factors, self.part(entry))
        neurons = self.checked(self.masked(entry), scores)
        keep = np.broadcast_to(neurons[:, None] if axis == "row" else neurons[None, :], shape).copy()
        return ModuleMask(entry, keep, axis)

    def checked(self, masked: MaskedModule, scores: Scores) -> NDArray[np.bool_]:
        """Return what the rule keeps of these scores, held to the share that was asked for."""
        rule, params = self.pattern.rule, self.pattern.params
        keep: NDArray[np.bool_] = rule.keep(scores, params, masked)
        removed = keep.size - int(np.count_nonzero(keep))
        tolerance = rule.tolerance(params, masked, scores.shape)
        require_share(masked.name, removed, keep.size, rule.sparsity(params, masked), tolerance)
        return keep


@dataclass
class _Pool:
    """Modules whose weights compete with each other, and what was removed of them so far."""

    what: str
    size: int
    sparsity: float
    cut: Cut
    n_removed: int = 0


def _fill_pool(work: _Work, members: list[Entry]) -> _Pool:
    size = sum(entry["shape"][0] * entry["shape"][1] for entry in members)
    sparsity = work.pattern.rule.sparsity(work.pattern.params, work.masked(members[0]))
    cut = find_cut(lambda: starmap(work.scores, work.weights(members)), n_removed(sparsity, size))
    return _Pool(f"{members[0]['name']} to {members[-1]['name']}", size, sparsity, cut)


def _pooled_mask(entry: Entry, scores: Scores, pool: _Pool) -> ModuleMask:
    removed = pool.cut.remove(scores)
    pool.n_removed += int(np.count_nonzero(removed))
    return ModuleMask(entry, ~removed)


def _head_mask(work: _Work, head: OutputHead) -> ModuleMask:
    masked = MaskedModule(head.module, "lm_head", MAGNITUDE["default_group"])
    group = work.pattern.rule.group(work.pattern.params, masked)
    scores = weight_scores(head.module, work.checkpoint.tensor(head.source), {}, MAGNITUDE, group)
    return ModuleMask(head.entry, work.checked(masked, scores))


def modules_with_idle_factor(factors: Factors, header: dict[str, Any], pattern: Pattern) -> int:
    """Count the modules whose only factor lies on rows while the pattern compares within rows: weights alone decide."""
    n_idle = 0
    for entry in selected_modules(header, pattern):
        module = MaskedModule(entry["name"], entry["part"], header["parts"][entry["part"]]["default_group"])
        held = {kind for kind in ("row", "column", "row_term", "column_term") if f"{module.name}.{kind}" in factors}
        n_idle += held == {"row"} and pattern.rule.group(pattern.params, module) == "row"
    return n_idle
