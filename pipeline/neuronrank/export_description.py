"""`neuronrank.json`, which says what an exported model holds, read without torch; `export.py` writes it."""

from pathlib import Path
from typing import Any

from neuronrank.errors import ArtifactError
from neuronrank.files import read_sealed_json, sha256_file
from neuronrank.headers import Export, check_header
from neuronrank.model_description import EXPORT_FILE

SCHEMA = "neuronrank.export/1"
RUN = "neuronrank export"
"""The command that makes it."""


def read_export(directory: Path) -> dict[str, Any]:
    """Read and check `neuronrank.json`; `require_listed` checks the files that it lists.

    Raises:
        ArtifactError: missing, changed after it was written, or of another schema.
    """
    path = directory / EXPORT_FILE
    description = read_sealed_json(path, SCHEMA, RUN)
    check_header(path, description, Export, RUN)
    return description


def require_listed(path: Path, n_bytes: int, sha256: str) -> None:
    """Refuse a file of an exported model that is not the one that was written.

    Raises:
        ArtifactError: missing, unreadable, or of another size or content.
    """
    try:
        if not path.is_file():
            raise ArtifactError(f"{path}: is no file, although {EXPORT_FILE} lists it. Run: {RUN}")
        if path.stat().st_size != n_bytes:
            raise ArtifactError(f"{path}: has {path.stat().st_size} bytes, {EXPORT_FILE} lists {n_bytes}. Run: {RUN}")
        found = sha256_file(path)
    except OSError as err:
        raise ArtifactError(f"{path}: cannot be read ({err}), although {EXPORT_FILE} lists it. Run: {RUN}") from err
    if found != sha256:
        raise ArtifactError(f"{path}: has sha256 {found[:12]}…, {EXPORT_FILE} lists {sha256[:12]}…. Run: {RUN}")
