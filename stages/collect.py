"""Run the calibration documents through the model once and keep their statistics."""

from pathlib import Path
from typing import Any

import click
import torch

from neuronrank import __version__
from neuronrank.checkpoint import ModelArtifact, open_model
from neuronrank.collection import CollectParams, collect_layers, find_classes
from neuronrank.files import output_directory
from neuronrank.params import lookup, read_params, validate
from neuronrank.statistics_writer import StatisticsWriter
from neuronrank.streaming import StreamedModel
from neuronrank.windows import Windows, read_windows, require_same_tokenizer
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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    streamed = StreamedModel(opened.checkpoint(), getattr(torch, options.dtype), device)
    n_layers = len(streamed.layers)
    modules: list[dict[str, Any]] = []

    token_ids = torch.from_numpy(windows.token_ids).long()
    classes = find_classes(token_ids, options)

    with output_directory(out) as partial:
        writer = StatisticsWriter(partial, n_layers, options.profile)
        writer.write_tokens(windows.token_ids)
        if len(classes.token_ids):
            writer.write_classes(classes.token_ids, classes.count)
        for layer in progress(collect_layers(streamed, token_ids, options, classes), n_layers, "layers"):
            writer.write_layer(layer.index, layer.arrays, layer.weights)
            modules += layer.modules
        writer.finish(_manifest(opened, windows, options, modules, streamed))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {"calibration_tokens": windows.n_tokens, "artifact_mib": round(size / 2**20, 2), "device": device.type}


def _manifest(
    model: ModelArtifact,
    windows: Windows,
    options: CollectParams,
    modules: list[dict[str, Any]],
    streamed: StreamedModel,
) -> dict[str, Any]:
    return {
        "model": {"fingerprint": model.fingerprint, "tokenizer_sha256": model.tokenizer_sha256},
        "calibration": {
            "n_windows": len(windows.token_ids),
            "window_tokens": windows.token_ids.shape[1],
            "sha256": windows.sha256,
            **{key: windows.header[key] for key in ("seed", "source", "origins")},
        },
        "collect": {
            "dtype": options.dtype,
            "propagation": "dense",
            "classes": options.classes,
            "topics": options.topics.model_dump(),
            "gram": options.gram,
            "neuronrank": __version__,
        },
        "n_layers": len(streamed.layers),
        "lm_head": {"module": streamed.layout.lm_head, "embeddings": streamed.layout.embeddings},
        "modules": modules,
    }


if __name__ == "__main__":
    main()
