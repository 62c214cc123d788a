"""Every recipe with every pattern from one statistics artifact: perplexities, and what calibration costs of it all.

One process: statistics are collected once, then recipe after recipe is scored, pruned and evaluated on the same
model in memory. The pipeline does the same in stages; this is for a table of all methods by one command.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from neuronrank.checkpoint import ModelArtifact
from neuronrank.collecting import collect_statistics
from neuronrank.collection import CollectParams
from neuronrank.comparison import perplexity, perplexity_ratio
from neuronrank.compatibility import why_unfit
from neuronrank.errors import ArtifactError
from neuronrank.evaluation import EvalParams, load_model, window_losses
from neuronrank.mask_store import MaskFile
from neuronrank.masking import make_masks
from neuronrank.outputs import output_file
from neuronrank.params import lookup, validate
from neuronrank.patterns import Pattern, read_pattern
from neuronrank.recipes import Recipe, read_recipe
from neuronrank.scores import compute_factors, score_header
from neuronrank.statistics_store import Statistics
from neuronrank.windows import Windows

Progress = Callable[[str], object]
Losses = dict[str, NDArray[np.float64]]


def measure_all(
    model: ModelArtifact,
    calibration: Windows,
    evaluation: dict[str, Windows],
    params: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Measure every recipe of the parameters with every pattern that its method supports.

    Args:
        model: that is pruned.
        calibration: windows that statistics are collected from.
        evaluation: windows of each text.
        params: the content of params.yaml.
        progress: called with a line for every step.

    Returns:
        `protocol`, `dense` (perplexity by text), `rows` (recipe, pattern, sparsity, perplexity and its ratio to the
        dense model's by text), `seconds` (collect, score, prune, eval, total).
    """
    begin = time.perf_counter()
    options = validate(CollectParams, lookup(params, "collect"), "collect")
    settings = validate(EvalParams, lookup(params, "eval"), "eval")
    seconds = dict.fromkeys(("collect", "score", "prune", "eval"), 0.0)
    clock = _Clock(seconds)
    with tempfile.TemporaryDirectory() as scratch:
        with clock("collect"):
            device = collect_statistics(model, calibration, options, Path(scratch) / "statistics")
        progress(f"collected in {seconds['collect']:.1f} s")
        statistics = Statistics(Path(scratch) / "statistics")
        dtype = getattr(torch, settings.dtype)
        with clock("eval"):
            dense = _losses(load_model(model, dtype, device), evaluation, settings)
        rows = []
        for name, section in lookup(params, "recipes").items():
            recipe = read_recipe(section, f"recipes.{name}")
            with clock("score"):
                factors, header = compute_factors(statistics, recipe), score_header(statistics.manifest, name, recipe)
            for pattern_name, pattern in _patterns(params, recipe).items():
                path = Path(scratch) / "mask.safetensors"
                with clock("prune"):
                    made = make_masks(model, factors, header, pattern, pattern_name, path)
                with clock("eval"):
                    found = _losses(load_model(model, dtype, device, MaskFile(path)), evaluation, settings)
                rows.append(_row(name, pattern_name, made["sparsity"], found, dense, settings.seed))
                progress(f"{name} {pattern_name}: {rows[-1]['perplexity']}")
    seconds["total"] = time.perf_counter() - begin
    return {
        "protocol": _protocol(model, calibration, evaluation, statistics, device),
        "dense": {text: round(perplexity(values), 4) for text, values in dense.items()},
        "rows": rows,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


class _Clock:
    """Adds up the seconds spent under a name."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds, self._name, self._begin = seconds, "", 0.0

    def __call__(self, name: str) -> "_Clock":
        self._name = name
        return self

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *_error: object) -> None:
        self._seconds[self._name] += time.perf_counter() - self._begin


def _patterns(params: dict[str, Any], recipe: Recipe) -> dict[str, Pattern]:
    """Return the patterns that a recipe's methods have scores for."""
    read = {name: read_pattern(value, f"patterns.{name}") for name, value in lookup(params, "patterns").items()}
    return {name: pattern for name, pattern in read.items() if why_unfit(recipe, pattern) is None}


def _losses(network: nn.Module, evaluation: dict[str, Windows], settings: EvalParams) -> Losses:
    return {
        text: window_losses(network, windows.token_ids, settings.windows_per_batch, lambda _n: None)
        for text, windows in evaluation.items()
    }


def _row(
    recipe: str, pattern: str, sparsity: dict[str, float], found: Losses, dense: Losses, seed: int
) -> dict[str, Any]:
    ratios = {text: perplexity_ratio(values, dense[text], seed) for text, values in found.items()}
    return {
        "recipe": recipe,
        "pattern": pattern,
        "sparsity": {name: round(share, 4) for name, share in sparsity.items()},
        "perplexity": {text: round(perplexity(values), 2) for text, values in found.items()},
        "ratio_to_dense": {text: [round(v, 3) for v in (r.low, r.value, r.high)] for text, r in ratios.items()},
    }


def _protocol(
    model: ModelArtifact,
    calibration: Windows,
    evaluation: dict[str, Windows],
    statistics: Statistics,
    device: torch.device,
) -> dict[str, Any]:
    return {
        "model": model.description["source"],
        "fingerprint": model.fingerprint,
        "calibration": [
            *calibration.token_ids.shape,
            calibration.header["source"]["source"],
            calibration.header["seed"],
        ],
        "evaluation": {text: list(windows.token_ids.shape) for text, windows in evaluation.items()},
        "collect": statistics.manifest["collect"],
        "profile": statistics.manifest["profile"],
        "device": device.type,
    }


def render(result: dict[str, Any]) -> str:
    """Return the measurements as Markdown: a row for each recipe and pattern, then the times."""
    texts = sorted(result["dense"])
    lines = [
        "| pattern | recipe | of the decoder linears removed | " + " | ".join(texts) + " | ratio to dense, 95 % |",
        "|---|---|---|" + "---|" * (len(texts) + 1),
        "| none | dense | 0.0 % | " + " | ".join(f"{result['dense'][text]:.2f}" for text in texts) + " | 1 |",
    ]
    order = list(dict.fromkeys(row["pattern"] for row in result["rows"]))
    for row in sorted(result["rows"], key=lambda row: (order.index(row["pattern"]), row["perplexity"][texts[-1]])):
        low, value, high = row["ratio_to_dense"][texts[-1]]
        cells = " | ".join(f"{row['perplexity'][text]:.2f}" for text in texts)
        removed = f"{100 * row['sparsity']['linears']:.1f} %"
        lines.append(
            f"| {row['pattern']} | {row['recipe']} | {removed} | {cells} | {value:.3g} ({low:.3g} to {high:.3g}) |"
        )
    seconds = result["seconds"]
    share = 100 * seconds["collect"] / seconds["total"]
    lines += [
        "",
        f"One artifact, {len(result['rows'])} masks: {seconds['total']:.0f} s in all, of which calibration "
        f"{seconds['collect']:.0f} s ({share:.0f} %), scoring {seconds['score']:.0f} s, masks {seconds['prune']:.0f} "
        f"s, evaluation {seconds['eval']:.0f} s.",
    ]
    return "\n".join(lines) + "\n"


_END = "<!-- end of results -->\n"


def replace_table(document: Path, rendered: str, command: str) -> None:
    """Put a rendered table in the place of the marked one of a Markdown file.

    Args:
        document: to change.
        rendered: the table, and what stands around it.
        command: that writes it, as the mark says.

    Raises:
        ArtifactError: the file has no marks.
    """
    opening = f"<!-- results: written by `{command}` -->\n"
    content = document.read_text(encoding="utf-8")
    before, begin, rest = content.partition(opening)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ArtifactError(f"{document}: has no lines {opening.strip()!r} and {_END.strip()!r}")
    with output_file(document) as partial:
        partial.write_text(before + begin + rendered + end + after, encoding="utf-8")
