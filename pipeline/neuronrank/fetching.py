"""Bring a model or texts to this machine and describe what they are."""

from pathlib import Path
from typing import Any

from neuronrank.checkpoint import describe_model
from neuronrank.documents import SOURCES_FILE, write_documents
from neuronrank.errors import SourceError
from neuronrank.files import write_json, write_sealed_json
from neuronrank.model_description import MODEL_FILE
from neuronrank.outputs import output_directory
from neuronrank.sources import read_source, read_texts


def fetch_model(section: Any, out: Path) -> dict[str, Any]:
    """Fetch the model that a `model` section names, check it, and write its description to `out`.

    Returns:
        The description, as `model.json` holds it.

    Raises:
        ParamsError: faults of the section.
        SourceError: the model cannot be fetched, or is of another architecture than stated.
        NotFiniteError: a weight is NaN or infinite.
    """
    source, options = read_source("model_sources", section, "model")
    with output_directory(out) as partial:
        weights = source.materialise(options, partial)
        described = describe_model(weights.directory, options.model_dump(mode="json"), weights.pointer)
        found = described["config"].get("model_type")
        if options.architecture not in (None, found):
            raise SourceError(
                f"model: config.json says model_type {found!r}, params say model.architecture: "
                f"{options.architecture!r}. Set model.architecture: {found}"
            )
        write_sealed_json(partial / MODEL_FILE, described)
    return described


def fetch_text(section: Any, out: Path) -> dict[str, int]:
    """Fetch the texts that a `text` section names.

    Returns:
        Number of documents of each text.

    Raises:
        ParamsError: faults of the section.
        SourceError: a text cannot be fetched.
    """
    wanted = read_texts(section, "text")
    with output_directory(out) as partial:
        provenance = {name: options.model_dump(mode="json") for name, (_, options) in wanted.items()}
        write_json(partial / SOURCES_FILE, provenance)
        return {
            name: write_documents(partial / f"{name}.jsonl", source.documents(options))
            for name, (source, options) in wanted.items()
        }
