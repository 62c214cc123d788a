"""Turn score factors and weights into a mask."""

import math
from pathlib import Path

import click

from neuronrank.checkpoint import open_model
from neuronrank.mask_store import pack, write_masks
from neuronrank.params import lookup, read_params
from neuronrank.patterns import read_pattern
from neuronrank.pruning import iter_masks, modules_with_idle_factor, pruned_head, unscored_lines
from neuronrank.realised import module_line, part_counts, realised_sparsity, summary_lines
from neuronrank.score_store import read_scores
from stages._command import InDirectory, InFile, Metrics, OutPath, log, stage_command


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
    for line in unscored_lines(header, chosen):
        log.info("%s", line)
    modules, packed = [], {}
    for mask in iter_masks(opened, factors, header, chosen):
        packed[mask.weight] = pack(mask.keep)
        modules.append(mask.describe())
        log.info("%s", module_line(modules[-1]))
    for line in summary_lines(modules):
        log.info("%s", line)
    idle = modules_with_idle_factor(factors, header, chosen)
    if idle:
        log.info(
            "in %d of %d modules the factor lies on rows and cannot change an order within rows", idle, len(modules)
        )
    head = pruned_head(opened, header, chosen)
    untied = {} if head is None else head.untied
    n_parameters = opened.n_parameters + (math.prod(head.shape) if head and untied else 0)
    sparsity = realised_sparsity(modules, header, n_parameters)
    provenance = {name: header[name] for name in ("recipe", "parts", "model", "calibration", "collect")}
    described = {"name": pattern, **chosen.params.model_dump(mode="json")}
    details = {"pattern": described, "modules": modules, "sparsity": sparsity, "untied": untied}
    write_masks(out, packed, {**provenance, **details})
    removed = sum(module["n_removed"] for module in modules)
    return {"sparsity": sparsity, "removed": removed, "parts": part_counts(modules)}


if __name__ == "__main__":
    main()
