"""Seals: a file of ours holds the SHA-256 of its own bytes, so that any change of one is noticed.

The digest stands in the field `file_sha256` of the JSON, or of the header of a safetensors file. It is taken over the
whole file with its own 64 digits as zeros, which makes it exact: a change of white space counts as well.
"""

import hashlib
import re
from pathlib import Path
from typing import BinaryIO

from neuronrank.errors import ArtifactError
from neuronrank.safetensors_header import header_text

FIELD = "file_sha256"
BLANK = "0" * 64
"""What stands in the field while the digest is taken."""
_SEAL = re.compile(rb'\\?"file_sha256\\?": ?\\?"([^"\\]*)')
"""In JSON, and in JSON inside a JSON string, as the header of safetensors has it."""
_DIGITS = re.compile(rb"[0-9a-f]{64}")
_BLOCK_BYTES = 1 << 20


def sealed_text(text: str) -> str:
    """Return JSON whose field `file_sha256` is blank with the digest in it.

    Raises:
        ValueError: it has not one such field.
    """
    encoded = text.encode("utf-8")
    start = _place(encoded)
    if encoded[start : start + 64] != BLANK.encode():
        raise ValueError(f"{FIELD} is not blank")
    digest = hashlib.sha256(encoded).hexdigest()
    return (encoded[:start] + digest.encode() + encoded[start + 64 :]).decode("utf-8")


def seal_tensor_file(path: Path) -> str:
    """Put the digest into a safetensors file whose field `file_sha256` is blank, and return it.

    Raises:
        ValueError: it has not one such field.
    """
    start = 8 + _place(header_text(path))
    with path.open("r+b") as file:
        digest = _digest(file, start)
        file.seek(start)
        file.write(digest.encode())
    return digest


def check_sealed_text(path: Path, content: bytes, run: str) -> None:
    """Refuse JSON that is not what was written.

    Args:
        path: where it was read, for the message.
        content: the whole file.
        run: the command that makes it.

    Raises:
        ArtifactError: it has no seal, or another content.
    """
    start = _sealed_place(path, content, run)
    blank = content[:start] + BLANK.encode() + content[start + 64 :]
    _require(path, hashlib.sha256(blank).hexdigest(), content[start : start + 64].decode(), run)


def check_tensor_file(path: Path, run: str) -> None:
    """Refuse a safetensors file that is not what was written. It is read in pieces, whatever its size.

    Args:
        path: the file.
        run: the command that makes it.

    Raises:
        ArtifactError: it cannot be read, has no seal, or another content.
    """
    try:
        head = header_text(path)
        start = 8 + _sealed_place(path, head, run)
        with path.open("rb") as file:
            found = _digest(file, start)
    except (OSError, ValueError) as err:
        raise ArtifactError(f"{path}: not a readable safetensors file ({err}). Make it again: {run}") from err
    _require(path, found, head[start - 8 : start + 56].decode(), run)


def _place(content: bytes) -> int:
    """Return where the 64 digits begin."""
    found = [match for match in _SEAL.finditer(content) if _DIGITS.fullmatch(match[1])]
    if len(found) != 1:
        raise ValueError(f"holds {len(found)} fields {FIELD} of 64 digits, expected 1")
    return found[0].start(1)


def _sealed_place(path: Path, content: bytes, run: str) -> int:
    try:
        return _place(content)
    except ValueError as err:
        raise ArtifactError(f"{path}: {err}; it is not whole. Make it again: {run}") from err


def _require(path: Path, found: str, stated: str, run: str) -> None:
    if found != stated:
        raise ArtifactError(
            f"{path}: its bytes have sha256 {found[:12]}…, it states {stated[:12]}…: it changed after it was written. "
            f"Make it again: {run}"
        )


def _digest(file: BinaryIO, start: int) -> str:
    """Return the SHA-256 of a file with the 64 bytes from `start` on as zeros (the digit)."""
    digest, position = hashlib.sha256(), 0
    file.seek(0)
    while block := bytearray(file.read(_BLOCK_BYTES)):
        first, last = max(start, position), min(start + 64, position + len(block))
        if first < last:
            block[first - position : last - position] = b"0" * (last - first)
        digest.update(block)
        position += len(block)
    return digest.hexdigest()
