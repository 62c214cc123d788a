"""Texts -> token windows on disk, for calibration and for evaluation."""

from pathlib import Path

from neuronrank.checkpoint import ModelArtifact
from neuronrank.documents import SOURCES_FILE, read_documents
from neuronrank.files import read_json
from neuronrank.outputs import output_directory
from neuronrank.tokenisation import (
    PrepareParams,
    calibration_windows,
    evaluation_windows,
    load_tokenizer,
    require_in_vocabulary,
)
from neuronrank.windows import write_windows


def prepare_windows(
    model: ModelArtifact, text: Path, options: PrepareParams, calibration: Path, evaluation: Path
) -> dict[str, int]:
    """Tokenise the texts that `fetch_text` left and cut them into windows.

    Args:
        model: whose tokenizer is used.
        text: what `fetch_text` wrote.
        options: how many windows of what length.
        calibration: directory to write `windows.safetensors` to.
        evaluation: directory to write one file to for each evaluation text.

    Returns:
        Number of tokens of each text: `calibration_tokens`, `evaluation_tokens_<name>`.

    Raises:
        SourceError: a text is too short.
        MismatchError: the tokenizer is not the model's.
    """
    model.require_its_tokenizer()
    tokenizer = load_tokenizer(model.weights_directory)
    shared = {"tokenizer_sha256": model.tokenizer_sha256, "window_tokens": options.window_tokens}
    documents = read_documents(text / "calibration.jsonl")
    ids, origins = calibration_windows(
        documents, tokenizer, n=options.calibration_windows, window_tokens=options.window_tokens, seed=options.seed
    )
    provenance = read_json(text / SOURCES_FILE, run="dvc repro fetch@text")
    header = {**shared, "seed": options.seed, "source": provenance["calibration"], "origins": origins}
    measured = {"calibration_tokens": int(ids.size)}

    # Both outputs are filled before either takes its place: a fault in one leaves the earlier pair as it was.
    with output_directory(evaluation) as partial_evaluation, output_directory(calibration) as partial_calibration:
        require_in_vocabulary(model, ids)
        write_windows(partial_calibration / "windows.safetensors", ids, header)
        for path in sorted((text / "evaluation").glob("*.jsonl")):
            ids = evaluation_windows(
                read_documents(path),
                tokenizer,
                n=options.evaluation_windows,
                window_tokens=options.window_tokens,
                name=path.stem,
            )
            require_in_vocabulary(model, ids)
            header = {**shared, "source": provenance[f"evaluation/{path.stem}"]}
            write_windows(partial_evaluation / f"{path.stem}.safetensors", ids, header)
            measured[f"evaluation_tokens_{path.stem}"] = int(ids.size)
    return measured
