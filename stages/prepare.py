"""Turn texts into token windows."""

from pathlib import Path

import click

from neuronrank.checkpoint import open_model
from neuronrank.params import lookup, read_params, validate
from neuronrank.preparing import prepare_windows
from neuronrank.tokenisation import PrepareParams
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
    return dict(prepare_windows(open_model(model), text, options, calibration, evaluation))


if __name__ == "__main__":
    main()
