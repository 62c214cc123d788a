"""Turn score factors and weights into a mask."""

from pathlib import Path

import click

from neuronrank.checkpoint import open_model
from neuronrank.masking import make_masks
from neuronrank.params import lookup, read_params
from neuronrank.patterns import read_pattern
from neuronrank.score_store import read_scores
from stages._command import InDirectory, InFile, Metrics, OutPath, stage_command


@stage_command(
    "prune",
    "python -m stages.prune",
    "--pattern 50pct",
    "--model artifacts/model",
    "--scores artifacts/scores/wanda.safetensors",
    "--out artifacts/masks/wanda/50pct.safetensors",
    "--metrics metrics/prune/wanda/50pct.json",
)
@click.option("--pattern", required=True, help="Name below `patterns` in params.yaml.")
@click.option("--model", type=InDirectory, required=True, help="What fetch left: for its weights.")
@click.option("--scores", type=InFile, required=True, help="What score wrote.")
@click.option("--out", type=OutPath, required=True, help="File to write.")
def main(pattern: str, model: Path, scores: Path, out: Path, params: Path) -> Metrics:
    """Choose which weights to remove; the weights themselves stay as they are."""
    key = f"patterns.{pattern}"
    chosen = read_pattern(lookup(read_params(params), key), key)
    opened = open_model(model)
    factors, header = read_scores(scores)
    made = make_masks(opened, factors, header, chosen, pattern, out)
    return {key: made[key] for key in ("sparsity", "removed", "parts", "made_from", "provenance")}


if __name__ == "__main__":
    main()
