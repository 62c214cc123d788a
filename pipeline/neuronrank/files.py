"""The formats of our files, whose bytes depend on nothing but their content; `outputs.py` says how they appear.

Nothing here imports torch.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from neuronrank.errors import ArtifactError
from neuronrank.outputs import output_file
from neuronrank.regular_files import open_regular
from neuronrank.safetensors_header import METADATA, parse_json, read_safetensors_header
from neuronrank.seals import (
    BLANK,
    FIELD,
    check_sealed_text,
    check_tensor_file,
    require_same_seal,
    seal_tensor_file,
    sealed_text,
)
from neuronrank.storage import SAVING, beside, remove, set_usual_mode

UNREADABLE = (safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError)
"""What the library raises of a file that is not sound, or whose types numpy has not."""
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


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> str:
    """Write a JSON object with the SHA-256 of its own bytes in `file_sha256`, and return it.

    Raises:
        StorageError: the disk refused a write.
    """
    text = sealed_text(canonical_json({**value, FIELD: BLANK}))
    with output_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return str(json.loads(text)[FIELD])


def read_sealed_json(path: Path, schema: str, run: str) -> dict[str, Any]:
    """Read what `write_sealed_json` wrote; `run` is the command that makes the file.

    Raises:
        ArtifactError: missing, not JSON, of another schema, or changed after it was written.
    """
    content = _content(path, run)
    parsed = _parsed(path, content, run)
    check_schema(path, parsed, schema, run)
    require_same_seal(path, parsed, check_sealed_text(path, content, run), run)
    return dict(parsed)


def read_json(path: Path, run: str) -> Any:
    """Read JSON; `run` is the command that makes the file.

    Raises:
        ArtifactError: missing, not JSON, or nested too deeply.
    """
    return _parsed(path, _content(path, run), run)


def _content(path: Path, run: str) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except FileNotFoundError as err:
        raise ArtifactError(f"{path}: not found. Run: {run}") from err
    except OSError as err:
        raise ArtifactError(f"{path}: cannot be read ({err}). Run: {run}") from err


def _parsed(path: Path, content: bytes, run: str) -> Any:
    try:
        return parse_json(content.decode("utf-8"))
    except ValueError as err:
        raise ArtifactError(f"{path}: not valid JSON ({err}). Make it again: {run}") from err


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> str:
    """Write arrays and one JSON header as safetensors; the bytes are a function of the content alone.

    Returns:
        The SHA-256 of the file's own bytes, which its header holds as `file_sha256`.

    Raises:
        StorageError: the disk refused a write.
    """
    with output_file(path) as partial:
        contiguous = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
        metadata = {HEADER_KEY: json.dumps({**header, FIELD: BLANK}, sort_keys=True, allow_nan=False)}
        _save_tensors(partial, beside(path, SAVING), contiguous, metadata)
        seal = seal_tensor_file(partial)
        set_usual_mode(partial)
    return seal


def _save_tensors(partial: Path, saving: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write safetensors by way of a directory of its own, which the next writer cleans when this one is killed.

    The library writes to a file of a random name first, in the directory of the one that it is asked for.
    """
    saving.mkdir()
    try:
        safetensors.numpy.save_file(tensors, saving / partial.name, metadata=metadata)
        (saving / partial.name).rename(partial)
    finally:
        remove(saving)


def read_header(path: Path, schema: str, run: str) -> dict[str, Any]:
    """Read the JSON header of one of our safetensors files, after checking every byte of the file.

    Raises:
        ArtifactError: missing, corrupt, of another schema, or changed after it was written.
    """
    header = read_metadata(path, run)
    check_schema(path, header, schema, run)
    require_same_seal(path, header, check_tensor_file(path, run), run)
    return dict(header)


@contextlib.contextmanager
def one_version(path: Path) -> Iterator[None]:
    """Read a file in several steps, and refuse it when another took its place between them.

    Raises:
        ArtifactError: it did.
    """
    before = _version(path)
    yield
    if _version(path) != before:
        raise ArtifactError(f"{path}: another file took its place while it was read. Run the command again")


def _version(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:  # whoever reads it says so
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def read_metadata(path: Path, run: str) -> Any:
    """Read the JSON header of a safetensors file, whatever is in it; {} when it has none of ours.

    Raises:
        ArtifactError: missing or corrupt; says to run `run`.
    """
    try:
        header, _ = read_safetensors_header(path)
    except FileNotFoundError as err:
        raise ArtifactError(f"{path}: not found. Run: {run}") from err
    except (OSError, ValueError) as err:
        raise ArtifactError(f"{path}: not a readable safetensors file ({err}). Make it again: {run}") from err
    try:
        return parse_json(header.get(METADATA, {}).get(HEADER_KEY, "{}"))
    except ValueError as err:
        raise ArtifactError(f"{path}: its header is not valid JSON ({err}). Make it again: {run}") from err


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a safetensors file; `read_header` checks its bytes.

    Raises:
        ArtifactError: corrupt.
    """
    try:
        return dict(safetensors.numpy.load_file(path))
    except UNREADABLE as err:
        raise ArtifactError(f"{path}: not a readable safetensors file ({err}). Make it again: dvc repro") from err


def check_schema(path: Path, header: Any, schema: str, run: str) -> None:
    """Refuse a header of another schema.

    Raises:
        ArtifactError: names what was found, what was expected and the command that mends it.
    """
    found = header.get("schema") if isinstance(header, Mapping) else type(header).__name__
    if isinstance(found, str) and found.partition("/")[0] != schema.partition("/")[0]:
        raise ArtifactError(f"{path}: is another kind of artifact, {found}; expected {schema}. Give one made by: {run}")
    if found != schema:
        raise ArtifactError(f"{path}: schema is {found!r}, this version reads {schema!r}. Make it again: {run}")
