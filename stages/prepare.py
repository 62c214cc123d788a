"""Turn texts into token windows."""

from pathlib import Path
from typing import Any

import click

from neuronrank.checkpoint import ModelArtifact, open_model
from neuronrank.documents import SOURCES_FILE, read_documents
from neuronrank.errors import MismatchError
from neuronrank.files import output_directory, read_json
from neuronrank.params import lookup, read_params, validate
from neuronrank.tokenisation import PrepareParams, calibration_windows, evaluation_windows, load_tokenizer
from neuronrank.windows import write_windows
from stages._command import InDirectory, Metrics, OutPath, stage_command


@stage_command(
    "prepare",
    "python -m stages.prepare",
    "--model artifacts/model",
    "--text artifacts/text",
    "--calibration artifacts/tokens/calibration",
    "--evaluation artifacts/tokens/evaluation",
    "--metrics metrics/prepare.json",
)
@click.option("--model", type=InDirectory, required=True, help="What fetch left: for its tokenizer.")
@click.option("--text", type=InDirectory, required=True, help="What fetch left: the texts.")
@click.option("--calibration", type=OutPath, required=True, help="Directory of the calibration windows.")
@click.option("--evaluation", type=OutPath, required=True, help="Directory of the evaluation windows.")
def main(model: Path, text: Path, calibration: Path, evaluation: Path, params: Path) -> Metrics:
    """Tokenise the texts and cut them into windows of equal length."""
    options = validate(PrepareParams, lookup(read_params(params), "prepare"), "prepare")
    opened = open_model(model)
    opened.require_its_tokenizer()
    tokenizer = load_tokenizer(opened.weights_directory)
    shared = {"tokenizer_sha256": opened.tokenizer_sha256, "window_tokens": options.window_tokens}
    documents = read_documents(text / "calibration.jsonl")
    ids, origins = calibration_windows(
        documents, tokenizer, n=options.calibration_windows, window_tokens=options.window_tokens, seed=options.seed
    )
    provenance = read_json(text / SOURCES_FILE, run="dvc repro fetch@text")
    header = {**shared, "seed": options.seed, "source": provenance["calibration"], "origins": origins}
    measured: Metrics = {"calibration_tokens": int(ids.size)}

    # Both outputs are filled before either takes its place: a fault in one leaves the earlier pair as it was.
    with output_directory(evaluation) as partial_evaluation, output_directory(calibration) as partial_calibration:
        _require_in_vocabulary(opened, int(ids.max()))
        write_windows(partial_calibration / "windows.safetensors", ids, header)
        for path in sorted((text / "evaluation").glob("*.jsonl")):
            ids = evaluation_windows(
                read_documents(path),
                tokenizer,
                n=options.evaluation_windows,
                window_tokens=options.window_tokens,
                name=path.stem,
            )
            _require_in_vocabulary(opened, int(ids.max()))
            header = {**shared, "source": provenance[f"evaluation/{path.stem}"]}
            write_windows(partial_evaluation / f"{path.stem}.safetensors", ids, header)
            measured[f"evaluation_tokens_{path.stem}"] = int(ids.size)
    return measured


def _require_in_vocabulary(model: ModelArtifact, largest: int) -> None:
    size: Any = model.description["config"].get("vocab_size")
    if size is not None and largest >= size:
        raise MismatchError(
            f"{model.weights_directory}: its tokenizer gives token id {largest}, its model knows {size} tokens. "
            f"The tokenizer does not belong to the model; fetch the model again"
        )


if __name__ == "__main__":
    main()
