"""`model.json`, which says what model a directory holds, read without torch; `checkpoint.py` writes it."""

from pathlib import Path
from typing import Any

from neuronrank.files import read_sealed_json
from neuronrank.headers import ModelDescription, check_header

MODEL_FILE = "model.json"
SCHEMA = "neuronrank.model/2"
EXPORT_FILE = "neuronrank.json"
"""What lies there instead in an exported model."""
RUN = "dvc repro fetch@model"
"""The command that makes it."""


def read_description(directory: Path) -> dict[str, Any]:
    """Read and check `model.json`.

    Raises:
        ArtifactError: missing, changed after it was written, or of another schema.
    """
    path = directory / MODEL_FILE
    description = read_sealed_json(path, SCHEMA, RUN)
    check_header(path, description, ModelDescription, RUN)
    return description
