"""The kinds of artifacts, and of which a path is: what `inspect`, `diff` and `verify` go by. Needs no torch."""

from pathlib import Path
from typing import Any

from neuronrank import export_description, losses, mask_store, score_store, statistics_schema, windows
from neuronrank.errors import ArtifactError
from neuronrank.files import read_json, read_metadata
from neuronrank.gguf_container import is_container
from neuronrank.model_description import EXPORT_FILE, MODEL_FILE, RUN
from neuronrank.model_description import SCHEMA as MODEL_SCHEMA
from neuronrank.statistics_store import MANIFEST

KINDS = {
    statistics_schema.SCHEMA: "statistics",
    score_store.SCHEMA: "scores",
    mask_store.SCHEMA: "masks",
    losses.SCHEMA: "losses",
    windows.SCHEMA: "token windows",
    MODEL_SCHEMA: "model",
    export_description.SCHEMA: "export",
    "imatrix": "imatrix",
}
"""Schema -> kind; an importance matrix, which is not of ours, has its `general.type` for one."""

_DIRECTORIES = {MANIFEST: "dvc repro collect", EXPORT_FILE: export_description.RUN, MODEL_FILE: RUN}
"""The file that states the schema of a directory -> the command that makes it."""


def stated_schema(path: Path) -> str:
    """Return the schema that a file, or that of a directory, states; "none" when it states none.

    Raises:
        ArtifactError: missing, corrupt, a part of statistics, or a directory that holds no artifact of ours, or not a
            complete one.
    """
    header: Any
    if path.is_dir():
        stating = next((name for name in _DIRECTORIES if (path / name).exists()), None)
        if stating is None:
            raise ArtifactError(
                f"{path}: has no {', '.join(_DIRECTORIES)}, so it is no statistics artifact and no model, or "
                f"not a complete one. Scores, masks, losses and token windows are files: give one of those below it"
            )
        header = read_json(path / stating, _DIRECTORIES[stating])
    elif is_container(path):
        return "imatrix"
    else:
        header = read_metadata(path, "dvc repro")
        if isinstance(header, dict) and header.get("schema") == statistics_schema.SCHEMA:
            raise ArtifactError(f"{path}: belongs to statistics, a directory with {MANIFEST}; give that directory")
    return str(header.get("schema", "none")) if isinstance(header, dict) else "none"
