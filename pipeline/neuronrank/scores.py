"""Cached statistics -> score factors: vectors for the rows or columns of every module, and for the neurons."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.errors import DegenerateError, MismatchError, NotFiniteError, ParamsError
from neuronrank.provenance import made_from, versions
from neuronrank.recipes import Recipe, RecipePart
from neuronrank.score_store import SCHEMA, Factors
from neuronrank.scoring import Element, MethodParams
from neuronrank.statistics_store import Module, Statistics
from neuronrank.tap_names import expert, of_expert
from neuronrank.tap_statistics import TapStatistics

Vector = NDArray[np.float64]
SEQUENTIAL = "sequential"
"""How a manifest calls propagation through layers that are pruned already."""


def compute_factors(statistics: Statistics, recipe: Recipe) -> Factors:
    """Compute the factors and terms of every module, and the neuron scores of every layer.

    Args:
        statistics: an opened artifact.
        recipe: a method for each part.

    Returns:
        `<module>.<row or column>` and `<module>.<row or column>_term`, (O,) or (I,); `neurons.<block>`, (F,), a
        block being a layer, `3`, or one of its experts, `3.7`. What a method does not have is absent.

    Raises:
        ArtifactError: the artifact lacks a statistic that the method needs.
        NotFiniteError: a factor is NaN or infinite.
        DegenerateError: a factor is all zero, or cannot rank.
        MismatchError: a factor's width is not the module's; or more was asked for than is stored.
        ParamsError: a kind of weight that the part does not have.
    """
    _require_its_recipe(statistics, recipe)
    factors: Factors = {}
    for step in factor_steps(statistics, recipe):
        factors |= step()
    return factors


def _require_its_recipe(statistics: Statistics, recipe: Recipe) -> None:
    """Refuse to score statistics of layers that were pruned on the way by another recipe."""
    collect = statistics.manifest["collect"]
    if collect["propagation"] == SEQUENTIAL and collect["sequential"]["parts"] != scored_parts(recipe):
        methods = ", ".join(f"{name}: {part['method']}" for name, part in collect["sequential"]["parts"].items())
        raise MismatchError(
            f"{statistics.directory}: was collected through layers pruned by another recipe ({methods}), or with other "
            f"parameters, and serves that one alone. Score dense statistics instead: dvc repro collect"
        )


def factor_steps(statistics: Statistics, recipe: Recipe) -> Iterator[Callable[[], Factors]]:
    """Yield what `compute_factors` does, one call for every module and for every layer's neurons.

    What a layer's calls read and compute is shared, and let go when the next layer begins.
    """
    first = gates(statistics)
    for layer, modules in groupby(statistics.modules, key=lambda module: module.layer):
        shared = _Layer(statistics, first)
        for module in modules:
            yield partial(_module_factors, shared, module, recipe[module.part])
        for gate in first.values():
            if gate.layer == layer:
                yield partial(_neuron_scores, shared, gate, recipe["mlp"])


class _Layer:
    """What the modules of one layer read: each tap is opened once, each factor computed once."""

    def __init__(self, statistics: Statistics, gates_of: dict[str, Module]) -> None:
        self.statistics, self.gates = statistics, gates_of
        self._taps: dict[tuple[str, int | None], TapStatistics] = {}

    def tap(self, layer: int, tap: str, params: MethodParams) -> TapStatistics:
        n_documents: int | None = getattr(params, "nsamples", None)
        if (tap, n_documents) not in self._taps:
            opened = self.statistics.tap(layer, tap, n_documents)
            if not opened.n:
                raise DegenerateError(
                    f"{opened.where}: the router sent no calibration token to this expert, so that nothing is known of "
                    f"it. Raise prepare.calibration_windows, or use text that the model routes to it; or score only "
                    f"attention (mlp: {{method: none}})"
                )
            self._taps[tap, n_documents] = opened
        return self._taps[tap, n_documents]


def _module_factors(shared: _Layer, module: Module, part: RecipePart) -> Factors:
    """Return one module's factor and term; nothing when its weights alone decide."""
    element = part.method.element(module.part, part.params)
    if element is None or element.channels is None:
        return {}
    tap, axis = _placement(module, element)
    width = module.shape[0 if axis == "row" else 1]
    found: Factors = {}
    for function, suffix in (("channel_factor", ""), ("channel_term", "_term")):
        if not hasattr(part.method, function):
            continue
        opened = shared.tap(module.layer, tap, part.params)
        with np.errstate(all="ignore"):  # what is not finite is refused below, by name
            vector = opened.remembered(getattr(part.method, function), part.params)
        if element.weight != "element":
            vector = vector * _weight_norm(shared, module, element) ** element.weight_exp
        kind = "term" if suffix else "factor"
        _require_ranking(vector, f"{module.name}: the {part.params.method} {kind} of {opened.where}", bool(suffix))
        if vector.shape != (width,):
            raise MismatchError(
                f"{module.name}: its {axis} {kind} has {vector.size} channels, its weight has {width}. "
                f"Statistics of another model? Run: dvc repro collect"
            )
        found[f"{module.name}.{axis}{suffix}"] = vector.astype(np.float32)
    return found


def _neuron_scores(shared: _Layer, gate: Module, part: RecipePart) -> Factors:
    """Return `neurons.<block>` -> (F,), nothing when the method does not rank neurons."""
    if not hasattr(part.method, "neuron_score"):
        return {}
    opened = shared.tap(gate.layer, gate.neuron_tap, part.params)
    norm = _l2_norm(shared.statistics, gate, "row")
    with np.errstate(all="ignore"):
        score = part.method.neuron_score(opened, norm, part.params)
    _require_ranking(score, f"{opened.where}: the {part.params.method} neuron score")
    return {f"neurons.{gate.block}": score.astype(np.float32)}


def gates(statistics: Statistics) -> dict[str, Module]:
    """Return block -> the module whose rows are the MLP's neurons: gate, or the first of a plain MLP.

    A block is a layer, `3`, or one of its experts, `3.7`.
    """
    found: dict[str, Module] = {}
    for module in statistics.modules:
        if module.part == "mlp" and module.neuron_axis == "row":
            found.setdefault(module.block, module)
    return found


def _placement(module: Module, element: Element) -> tuple[str, str]:
    """Return which tap an element score reads for a module, and where its factor lies."""
    if element.channels == "input":
        return module.input_tap, "column"
    if element.channels == "gate_pre" and module.part == "mlp":
        return of_expert("gate_pre", expert(module.neuron_tap)), module.neuron_axis
    return module.neuron_tap, module.neuron_axis


def _weight_norm(shared: _Layer, module: Module, element: Element) -> Vector:
    """Return the L2 norm of the weights that stand for each neuron of a module."""
    if element.weight == "row_norm":
        return _l2_norm(shared.statistics, module, module.neuron_axis)
    if module.part != "mlp":
        raise ParamsError(f"{module.name}: magnitude neuron_norm is the norm of a gate row; attention has none")
    return _l2_norm(shared.statistics, shared.gates[module.block], "row")


def _l2_norm(statistics: Statistics, module: Module, axis: str) -> Vector:
    """Return the L2 norm of every row or column of a module's weight."""
    return np.sqrt(statistics.weight_sums(module.name, f"{axis}_sum_sq").astype(np.float64))


def _require_ranking(factor: Vector, what: str, is_term: bool = False) -> None:
    """Refuse a factor that is not finite as float32, all zero, or constant; a term may be constant."""
    with np.errstate(all="ignore"):
        stored = factor.astype(np.float32)
    n_bad = np.count_nonzero(~np.isfinite(stored))
    if n_bad:
        raise NotFiniteError(
            f"{what} is NaN or infinite in {n_bad} of {stored.size} channels "
            f"(a silent channel with a negative exponent, or an exponent too large?)"
        )
    if not stored.any():
        raise DegenerateError(f"{what} is zero in all {stored.size} channels: the tap was silent, it cannot rank")
    if stored.size > 1 and not is_term and (stored == stored[0]).all():
        raise DegenerateError(f"{what} is the same in all {stored.size} channels: it cannot rank")


def reads_statistics(name: str, part: RecipePart) -> bool:
    """Say whether a part's scores need more than its weights.

    Args:
        name: of the part.
        part: method and parameters.
    """
    element = part.method.element(name, part.params)
    by_channel = element is not None and (element.channels is not None or element.weight != "element")
    return by_channel or hasattr(part.method, "neuron_score")


def score_header(manifest: dict[str, Any], recipe_name: str, recipe: Recipe) -> dict[str, Any]:
    """Return what the scores say of themselves: methods, modules, and what they were made from.

    A part that the recipe leaves without a score is absent from `parts`.

    Args:
        manifest: of the statistics.
        recipe_name: as params.yaml or the command line call it.
        recipe: a method for each part.
    """
    kept = ("name", "layer", "part", "shape", "neuron_tap", "neuron_axis", "weight", "rows", "transposed")
    return {
        "schema": SCHEMA,
        "recipe": recipe_name,
        "parts": scored_parts(recipe),
        "modules": [{key: module[key] for key in kept} for module in manifest["modules"]],
        "lm_head": manifest["lm_head"],
        "n_layers": manifest["n_layers"],
        "model": manifest["model"],
        "calibration": {key: value for key, value in manifest["calibration"].items() if key != "origins"},
        "collect": manifest["collect"],
        "versions": manifest.get("versions") or versions(),  # none yet where nothing was read from a file
        "made_from": made_from(manifest, "statistics"),
    }


def scored_parts(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return part -> what the scores' header says of it, for every part that the recipe scores."""
    described = {name: _describe_part(name, part) for name, part in recipe.items()}
    return {name: part for name, part in described.items() if part["elements"] or part["neurons"]}


def _describe_part(name: str, part: RecipePart) -> dict[str, Any]:
    element = part.method.element(name, part.params)
    by_norm = element is not None and element.weight != "element"  # then the factor holds the weight
    return {
        "method": part.params.method,
        "default_group": part.method.DEFAULT_GROUP,
        "elements": element is not None,
        "neurons": hasattr(part.method, "neuron_score"),
        "weight_exp": 0.0 if element is None or by_norm else element.weight_exp,
        "weight_multi": 1.0 if element is None else element.weight_multi,
        "params": part.params.model_dump(mode="json"),
    }
