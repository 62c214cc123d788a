"""Compute score factors from cached statistics."""

from pathlib import Path

import click

from neuronrank.params import lookup, read_params
from neuronrank.provenance import in_words
from neuronrank.recipes import read_recipe
from neuronrank.score_store import write_scores
from neuronrank.scores import compute_factors, score_header
from neuronrank.statistics_store import Statistics
from stages._command import InDirectory, Metrics, OutPath, stage_command


@stage_command(
    "score",
    "python -m stages.score",
    "--recipe wanda",
    "--statistics artifacts/statistics",
    "--out artifacts/scores/wanda.safetensors",
    "--metrics metrics/score/wanda.json",
)
@click.option("--recipe", required=True, help="Name below `recipes` in params.yaml.")
@click.option("--statistics", type=InDirectory, required=True, help="The statistics artifact.")
@click.option("--out", type=OutPath, required=True, help="File to write.")
def main(recipe: str, statistics: Path, out: Path, params: Path) -> Metrics:
    """Compute a recipe's row and column factors; no model and no weights are read."""
    key = f"recipes.{recipe}"
    parts = read_recipe(lookup(read_params(params), key), key)
    opened = Statistics(statistics)
    factors = compute_factors(opened, parts)
    header = score_header(opened.manifest, recipe, parts)
    seal = write_scores(out, factors, header)
    told = {"made_from": {**header["made_from"], "scores": seal}, "provenance": in_words(header)}
    return {"factors": len(factors), **told}


if __name__ == "__main__":
    main()
