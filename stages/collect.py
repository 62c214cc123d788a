"""Run the calibration documents through the model once and keep their statistics."""

from functools import partial
from pathlib import Path

import click

from neuronrank.checkpoint import open_model
from neuronrank.collecting import Setup, collect_statistics
from neuronrank.collection import CollectParams
from neuronrank.merging_artifacts import fitted_on as open_fitted
from neuronrank.params import lookup, read_params, validate
from neuronrank.provenance import in_words, made_from
from neuronrank.ranks import joined
from neuronrank.statistics_store import Statistics
from neuronrank.windows import read_windows, require_same_tokenizer
from stages._command import InDirectory, Metrics, OutPath, progress, stage_command


@stage_command(
    "collect",
    "python -m stages.collect",
    "--model artifacts/model",
    "--tokens artifacts/tokens/calibration",
    "--out artifacts/statistics",
    "--metrics metrics/collect.json",
)
@click.option("--model", type=InDirectory, required=True, help="What fetch left.")
@click.option("--tokens", type=InDirectory, required=True, help="The calibration windows.")
@click.option("--out", type=OutPath, required=True, help="Directory of the statistics artifact.")
@click.option("--fitted-on", type=InDirectory, help="An earlier artifact: take its classes and topics, to merge both.")
def main(model: Path, tokens: Path, out: Path, fitted_on: Path | None, params: Path) -> Metrics:
    """Collect the statistics of every decoder layer, one layer's weights in memory at a time.

    Started by `torchrun --nproc-per-node K -m stages.collect …`, every process takes a share of the windows.
    """
    options = validate(CollectParams, lookup(read_params(params), "collect"), "collect")
    opened = open_model(model)
    windows = read_windows(tokens / "windows.safetensors")
    require_same_tokenizer(windows, tokens, opened.tokenizer_sha256)
    earlier = None if fitted_on is None else open_fitted(fitted_on, opened, options)
    with joined() as ranks:
        setup = Setup(partial(progress, what="layers"), None, earlier, ranks)
        device = collect_statistics(opened, windows, options, out, setup)
        if not ranks.first:
            return {}
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    manifest = Statistics(out).manifest
    told = {"made_from": made_from(manifest, "statistics"), "provenance": in_words(manifest)}
    counts = {"calibration_tokens": windows.n_tokens, "artifact_mib": round(size / 2**20, 2)}
    return {**counts, "device": device.type, **told}


if __name__ == "__main__":
    main()
