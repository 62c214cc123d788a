"""Outputs that appear whole or not at all, and bytes that depend on nothing but their content.

Everything is written beside its place under a `.partial` name and renamed when complete, so that an interrupted
run leaves the earlier output as it was. Nothing here imports torch.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from neuronrank.errors import ArtifactError, NeuronrankError, StorageError
from neuronrank.safetensors_header import METADATA, parse_json, read_safetensors_header
from neuronrank.seals import BLANK, FIELD, check_sealed_text, check_tensor_file, seal_tensor_file, sealed_text

log = logging.getLogger("neuronrank")
HEADER_KEY = "neuronrank"
"""The one metadata key of our safetensors files: with several keys the library orders them differently each run."""

_REFUSED_WRITES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


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


@contextlib.contextmanager
def explain_write_errors(target: Path, kept: Path | None = None) -> Iterator[None]:
    """Turn a refused write below `target` into a StorageError that says where and why.

    Args:
        target: what is written.
        kept: where what was done so far stays for the next run.

    Raises:
        StorageError: no space, read-only, no permission, or an input/output error.
    """
    try:
        yield
    except OSError as err:
        elsewhere = err.filename is not None and target.name not in str(err.filename)
        if err.errno not in _REFUSED_WRITES or elsewhere:
            raise
        raise StorageError(_storage_message(target, str(err.strerror), kept)) from err
    except safetensors.SafetensorError as err:
        # The library reports an OSError as text: "I/O error: No space left on device (os error 28)".
        if not any(f"(os error {code})" in str(err) for code in _REFUSED_WRITES):
            raise
        raise StorageError(_storage_message(target, str(err), kept)) from err


def _storage_message(target: Path, reason: str, kept: Path | None) -> str:
    left = f"What was done is kept in {kept}" if kept and kept.exists() else "Nothing half-written is left"
    return f"{target}: cannot write: {reason}. {left}; free the space or fix it, then run again"


@contextlib.contextmanager
def output_directory(path: Path) -> Iterator[Path]:
    """Give an empty directory to fill; on success it becomes `path`, on failure it is deleted and `path` stays.

    Raises:
        StorageError: the disk refused a write.
    """
    partial = path.with_name(f".{path.name}.partial")
    with explain_write_errors(path):
        try:
            _remove(partial)
            partial.mkdir(parents=True)
            yield partial
            _sync_tree(partial)
            _replace(partial, path)
        except BaseException:
            _remove(partial)
            raise


@contextlib.contextmanager
def resumable_directory(path: Path, key: str) -> Iterator[Path]:
    """Give a directory with what an interrupted run of the same key left; on success its `artifact/` becomes `path`.

    When it is killed or a write fails it stays for the next run; on an error of ours, which tells of bad input, it is
    deleted. `path` stays in any case. What a run of another key left is deleted, and so is what
    was written before the machine last started: it may not have reached the disk whole.

    Args:
        path: directory to write.
        key: SHA-256 of all that the content is made from.

    Yields:
        The directory. It holds `artifact/`, and whatever the run needs to go on besides.

    Raises:
        StorageError: the disk refused a write; or `path` holds something else than an artifact.
    """
    if path.exists() and not (path / "manifest.json").exists() and not (path.is_dir() and not any(path.iterdir())):
        raise StorageError(f"{path}: exists and is no statistics artifact. Choose another place, or delete it first")
    work = path.with_name(f".{path.name}.{sha256_text(key + boot_id())[:16]}.partial")
    artifact = work / "artifact"
    with explain_write_errors(path, work):
        for other in path.parent.glob(f".{path.name}.*partial"):
            if other != work or not artifact.exists():  # without it the run had ended, but for cleaning up
                log.info("%s: deleted; an interrupted run of other input, code or processes left it", other)
                _remove(other)
        for half_written in artifact.rglob("*.partial"):
            _remove(half_written)
        artifact.mkdir(parents=True, exist_ok=True)
        try:
            yield work
        except NeuronrankError as err:
            if not isinstance(err, StorageError):  # of other input the run would have another key
                _remove(work)
            raise
        _sync_tree(artifact)
        _replace(artifact, path)
        _remove(work)


def boot_id() -> str:
    """Return what differs each time the machine starts; where the system does not tell, each time it is asked."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return uuid.uuid4().hex


@contextlib.contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """Give a path to write; on success it becomes `path`, on failure it is deleted and `path` stays.

    Raises:
        StorageError: the disk refused a write.
    """
    partial = path.with_name(f".{path.name}.partial")
    with explain_write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _sync_file(partial)
            partial.replace(path)
        except BaseException:
            _remove(partial)
            raise


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
    check_sealed_text(path, content, run)
    return dict(parsed)


def read_json(path: Path, run: str) -> Any:
    """Read JSON; `run` is the command that makes the file.

    Raises:
        ArtifactError: missing, not JSON, or nested too deeply.
    """
    return _parsed(path, _content(path, run), run)


def _content(path: Path, run: str) -> bytes:
    try:
        return path.read_bytes()
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
        safetensors.numpy.save_file(contiguous, partial, metadata=metadata)
        seal = seal_tensor_file(partial)
        partial.chmod(0o666 & ~_umask())  # the library makes the file private
    return seal


def read_header(path: Path, schema: str, run: str) -> dict[str, Any]:
    """Read the JSON header of one of our safetensors files, after checking every byte of the file.

    Raises:
        ArtifactError: missing, corrupt, of another schema, or changed after it was written.
    """
    header = read_metadata(path, run)
    check_schema(path, header, schema, run)
    check_tensor_file(path, run)
    return dict(header)


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
    except (safetensors.SafetensorError, OSError, KeyError) as err:  # KeyError: a type that numpy has not
        raise ArtifactError(f"{path}: not a readable safetensors file ({err}). Make it again: dvc repro") from err


def check_schema(path: Path, header: Any, schema: str, run: str) -> None:
    """Refuse a header of another schema.

    Raises:
        ArtifactError: names what was found, what was expected and the command that mends it.
    """
    found = header.get("schema") if isinstance(header, Mapping) else type(header).__name__
    if found != schema:
        raise ArtifactError(f"{path}: schema is {found!r}, this version reads {schema!r}. Make it again: {run}")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_tree(root: Path) -> None:
    for path in sorted(root.rglob("*")):
        if path.is_file():
            _sync_file(path)


def _replace(partial: Path, path: Path) -> None:
    """Put a directory in the place of another: two renames, since a rename cannot overwrite a full directory."""
    old = path.with_name(f".{path.name}.old")
    had_one = path.exists() or path.is_symlink()
    if had_one:
        _remove(old)
        path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        if had_one:
            old.rename(path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
