"""The formats of our files, whose bytes depend on nothing but their content; `outputs.py` says how they appear.

Nothing here imports torch.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from neuronrank.errors import ArtifactError
from neuronrank.outputs import output_file

HEADER_KEY = "neuronrank"
"""The one metadata key of our safetensors files: with several keys the library orders them differently each run."""


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and a final newline; NaN and infinity are refused.

    Raises:
        ValueError: a float is not finite.
    """
    return json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def sha256_text(text: str) -> str:
    """Return the hexadecimal SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON, whole or not at all.

    Raises:
        StorageError: the disk refused a write.
    """
    with output_file(path) as partial:
        partial.write_text(canonical_json(value), encoding="utf-8")


def read_json(path: Path, run: str) -> Any:
    """Read JSON; `run` is the command that makes the file.

    Raises:
        ArtifactError: missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ArtifactError(f"{path}: not found. Run: {run}") from err
    except ValueError as err:
        raise ArtifactError(f"{path}: not valid JSON ({err}). Make it again: {run}") from err


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> None:
    """Write arrays and one JSON header as safetensors; the bytes are a function of the content alone.

    Raises:
        StorageError: the disk refused a write.
    """
    with output_file(path) as partial:
        contiguous = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
        metadata = {HEADER_KEY: json.dumps(header, sort_keys=True, allow_nan=False)}
        safetensors.numpy.save_file(contiguous, partial, metadata=metadata)
        partial.chmod(0o666 & ~_umask())  # the library makes the file private


def read_header(path: Path, schema: str, run: str, required: Sequence[str] = ()) -> dict[str, Any]:
    """Read the JSON header of one of our safetensors files; `required` keys must be in it.

    Raises:
        ArtifactError: missing, corrupt, incomplete or of another schema.
    """
    header = read_metadata(path, run)
    check_schema(path, header, schema, run, required)
    return dict(header)


def read_metadata(path: Path, run: str) -> Any:
    """Read the JSON header of a safetensors file, whatever is in it; {} when it has none of ours.

    Raises:
        ArtifactError: missing or corrupt; says to run `run`.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return json.loads((file.metadata() or {}).get(HEADER_KEY, "{}"))
    except FileNotFoundError as err:
        raise ArtifactError(f"{path}: not found. Run: {run}") from err
    except (safetensors.SafetensorError, OSError) as err:
        raise ArtifactError(f"{path}: not a readable safetensors file ({err}). Make it again: {run}") from err
    except ValueError as err:
        raise ArtifactError(f"{path}: its header is not valid JSON ({err}). Make it again: {run}") from err


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a safetensors file.

    Raises:
        ArtifactError: corrupt.
    """
    try:
        return dict(safetensors.numpy.load_file(path))
    except (safetensors.SafetensorError, OSError) as err:
        raise ArtifactError(f"{path}: not a readable safetensors file ({err}). Make it again: dvc repro") from err


def check_schema(path: Path, header: Mapping[str, Any], schema: str, run: str, required: Sequence[str] = ()) -> None:
    """Refuse a header of another schema, or one that lacks what its schema promises.

    Raises:
        ArtifactError: names what was found, what was expected and the command that mends it.
    """
    found = header.get("schema") if isinstance(header, Mapping) else type(header).__name__
    if found != schema:
        raise ArtifactError(f"{path}: schema is {found!r}, this version reads {schema!r}. Make it again: {run}")
    missing = [key for key in required if key not in header]
    if missing:
        raise ArtifactError(f"{path}: its header lacks {', '.join(missing)}. Make it again: {run}")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
