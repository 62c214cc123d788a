"""Collect through layers that are pruned on the way, as published procedures do, and make the mask."""

from functools import partial
from pathlib import Path

import click

from neuronrank.checkpoint import open_model
from neuronrank.collecting import Setup, collect_statistics
from neuronrank.collection import CollectParams
from neuronrank.masking import make_masks
from neuronrank.params import lookup, read_params, validate
from neuronrank.patterns import read_pattern
from neuronrank.recipes import read_recipe
from neuronrank.scores import compute_factors, score_header
from neuronrank.sequential import sequential
from neuronrank.statistics_store import Statistics
from neuronrank.windows import read_windows, require_same_tokenizer
from stages._command import InDirectory, Metrics, OutPath, progress, stage_command


@stage_command(
    "sequential",
    "python -m stages.sequential",
    "--by wanda 50pct",
    "--model artifacts/model",
    "--tokens artifacts/tokens/calibration",
    "--statistics artifacts/sequential/wanda/50pct",
    "--out artifacts/masks/wanda_sequential/50pct.safetensors",
    "--metrics metrics/prune/wanda_sequential/50pct.json",
)
@click.option("--by", nargs=2, required=True, metavar="RECIPE PATTERN", help="Names below `recipes` and `patterns`.")
@click.option("--model", type=InDirectory, required=True, help="What fetch left.")
@click.option("--tokens", type=InDirectory, required=True, help="The calibration windows.")
@click.option("--statistics", type=OutPath, required=True, help="Directory of the statistics artifact to write.")
@click.option("--out", type=OutPath, required=True, help="Mask file to write.")
def main(by: tuple[str, str], model: Path, tokens: Path, statistics: Path, out: Path, params: Path) -> Metrics:
    """Prune layer by layer: each layer is scored on what the pruned layers before it give."""
    (recipe, pattern), read = by, read_params(params)
    options = validate(CollectParams, lookup(read, "collect"), "collect")
    parts = read_recipe(lookup(read, f"recipes.{recipe}"), f"recipes.{recipe}")
    chosen = read_pattern(lookup(read, f"patterns.{pattern}"), f"patterns.{pattern}")
    opened = open_model(model)
    propagation = sequential(opened, parts, chosen)
    windows = read_windows(tokens / "windows.safetensors")
    require_same_tokenizer(windows, tokens, opened.tokenizer_sha256)
    shown = partial(progress, what="layers")
    collect_statistics(opened, windows, options, statistics, Setup(shown, propagation))
    collected = Statistics(statistics)
    header = score_header(collected.manifest, f"{recipe}_sequential", parts)
    made = make_masks(opened, compute_factors(collected, parts), header, chosen, pattern, out)
    return {key: made[key] for key in ("sparsity", "removed", "parts", "made_from", "provenance")}


if __name__ == "__main__":
    main()
