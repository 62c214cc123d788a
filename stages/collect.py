"""Run the calibration documents through the model once and keep their statistics."""

from pathlib import Path

import click

from neuronrank.checkpoint import open_model
from neuronrank.collecting import collect_statistics
from neuronrank.collection import CollectParams
from neuronrank.params import lookup, read_params, validate
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
def main(model: Path, tokens: Path, out: Path, params: Path) -> Metrics:
    """Collect the statistics of every decoder layer, one layer's weights in memory at a time."""
    options = validate(CollectParams, lookup(read_params(params), "collect"), "collect")
    opened = open_model(model)
    windows = read_windows(tokens / "windows.safetensors")
    require_same_tokenizer(windows, tokens, opened.tokenizer_sha256)
    device = collect_statistics(
        opened, windows, options, out, lambda layers, n_layers: progress(layers, n_layers, "layers")
    )
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {"calibration_tokens": windows.n_tokens, "artifact_mib": round(size / 2**20, 2), "device": device.type}


if __name__ == "__main__":
    main()
