"""Token windows of a one-shot run; those of pinned sources are kept for the next run."""

from pathlib import Path
from typing import Any

from neuronrank.checkpoint import ModelArtifact
from neuronrank.documents import Document
from neuronrank.files import canonical_json, sha256_text
from neuronrank.locks import one_writer
from neuronrank.params import validate
from neuronrank.sources import read_source
from neuronrank.tokenisation import (
    PrepareParams,
    calibration_windows,
    evaluation_windows,
    load_tokenizer,
    require_in_vocabulary,
)
from neuronrank.windows import Windows, read_windows, write_windows


def calibration_tokens(model: ModelArtifact, text: dict[str, Any], prepare: dict[str, Any], cache: Path) -> Windows:
    """Return the calibration windows.

    Raises:
        SourceError: the text cannot be had, or is too short.
    """
    options = validate(PrepareParams, prepare, "prepare")
    key = {
        "text": text,
        "tokenizer": model.tokenizer_sha256,
        "prepare": [options.window_tokens, options.calibration_windows, options.seed],
    }
    path = cache / f"{sha256_text(canonical_json(key))[:16]}.safetensors"
    if text["source"] != "files" and path.exists():  # files may have changed
        return read_windows(path)
    tokenizer = load_tokenizer(model.weights_directory)
    ids, origins = calibration_windows(
        _documents(text),
        tokenizer,
        n=options.calibration_windows,
        window_tokens=options.window_tokens,
        seed=options.seed,
    )
    require_in_vocabulary(model, ids)
    shared = {"tokenizer_sha256": model.tokenizer_sha256, "window_tokens": options.window_tokens}
    header = {**shared, "seed": options.seed, "source": text, "origins": origins}
    if text["source"] != "files":
        with one_writer(path, wait=True):
            write_windows(path, ids, header)
    return Windows(ids, header)


def evaluation_tokens(model: ModelArtifact, texts: dict[str, Any], prepare: dict[str, Any]) -> dict[str, Windows]:
    """Return the evaluation windows of every text.

    Raises:
        SourceError: a text cannot be had, or is too short.
    """
    options = validate(PrepareParams, prepare, "prepare")
    tokenizer = load_tokenizer(model.weights_directory)
    found = {}
    for name, text in texts.items():
        ids = evaluation_windows(
            _documents(text), tokenizer, n=options.evaluation_windows, window_tokens=options.window_tokens, name=name
        )
        require_in_vocabulary(model, ids)
        found[name] = Windows(ids, {"source": text, "window_tokens": options.window_tokens})
    return found


def _documents(text: dict[str, Any]) -> list[Document]:
    source, options = read_source("text_sources", text, "text")
    return list(source.documents(options))
