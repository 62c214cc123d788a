"""Bring the model or the texts to this machine."""

from pathlib import Path
from typing import Any

import click

from neuronrank.checkpoint import MODEL_FILE, describe_model
from neuronrank.documents import SOURCES_FILE, write_documents
from neuronrank.errors import SourceError
from neuronrank.files import output_directory, write_json
from neuronrank.params import lookup, read_params
from neuronrank.sources import read_source, read_texts
from stages._command import Metrics, OutPath, stage_command


@stage_command(
    "fetch",
    "python -m stages.fetch model",
    "--out artifacts/model",
    "--metrics metrics/fetch/model.json",
)
@click.argument("what", type=click.Choice(["model", "text"]))
@click.option("--out", type=OutPath, required=True, help="Directory to write.")
def main(what: str, out: Path, params: Path) -> Metrics:
    """Fetch the MODEL or the TEXT that params.yaml names, check it, and describe what it is."""
    section = lookup(read_params(params), what)
    return _fetch_model(section, out) if what == "model" else _fetch_text(section, out)


def _fetch_model(section: Any, out: Path) -> Metrics:
    source, options = read_source("model_sources", section, "model")
    with output_directory(out) as partial:
        weights = source.materialise(options, partial)
        described = describe_model(weights.directory, options.model_dump(mode="json"), weights.pointer)
        found = described["config"].get("model_type")
        if found != options.architecture:
            raise SourceError(
                f"model: config.json says model_type {found!r}, params say model.architecture: "
                f"{options.architecture!r}. Set model.architecture: {found}"
            )
        write_json(partial / MODEL_FILE, described)
    return {"tensors": len(described["tensors"]), "fingerprint": described["fingerprint"]}


def _fetch_text(section: Any, out: Path) -> Metrics:
    wanted = read_texts(section, "text")
    with output_directory(out) as partial:
        provenance = {name: options.model_dump(mode="json") for name, (_, options) in wanted.items()}
        write_json(partial / SOURCES_FILE, provenance)
        return {
            f"{name.replace('/', '_')}_documents": write_documents(partial / f"{name}.jsonl", source.documents(options))
            for name, (source, options) in wanted.items()
        }


if __name__ == "__main__":
    main()
