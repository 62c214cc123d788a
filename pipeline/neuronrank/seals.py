"""Seals: a file of ours holds the SHA-256 of its own bytes, so that any change of one is noticed.

The digest stands in the field `file_sha256` of the JSON, or of the header of a safetensors file. It is taken over the
whole file with its own 64 digits as zeros, which makes it exact: a change of white space counts as well.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from neuronrank.errors import ArtifactError
from neuronrank.regular_files import open_regular
from neuronrank.safetensors_header import header_text

FIELD = "file_sha256"
BLANK = "0" * 64
"""What stands in the field while the digest is taken."""
_IN_TEXT = re.compile(rb'\n  "file_sha256": "([0-9a-f]{64})"')
"""At the top of canonical JSON: what is inside something stands further right, and no text holds a line's end."""
_IN_HEADER = re.compile(rb'[{ ]\\"file_sha256\\": \\"([0-9a-f]{64})\\"')
"""In JSON inside a JSON string, as the header of safetensors has it; in a text there, more backslashes come before."""
_BLOCK_BYTES = 1 << 20


def sealed_text(text: str) -> str:
    """Return JSON whose field `file_sha256` is blank with the digest in it.

    Raises:
        ValueError: it has not one such field.
    """
    encoded = text.encode("utf-8")
    start = _place(encoded, _IN_TEXT)
    if encoded[start : start + 64] != BLANK.encode():
        raise ValueError(f"{FIELD} is not blank")
    digest = hashlib.sha256(encoded).hexdigest()
    return (encoded[:start] + digest.encode() + encoded[start + 64 :]).decode("utf-8")


def seal_tensor_file(path: Path) -> str:
    """Put the digest into a safetensors file whose field `file_sha256` is blank, and return it.

    Raises:
        ValueError: it has not one such field.
    """
    start = 8 + _place(header_text(path), _IN_HEADER)
    with path.open("r+b") as file:
        digest = _digest(file, start)
        file.seek(start)
        file.write(digest.encode())
    return digest


def check_sealed_text(path: Path, content: bytes, run: str) -> str:
    """Refuse JSON that is not what was written, and return its seal.

    Args:
        path: where it was read, for the message.
        content: the whole file.
        run: the command that makes it.

    Raises:
        ArtifactError: it has no seal, or another content.
    """
    start = _sealed_place(path, content, _IN_TEXT, run)
    blank = content[:start] + BLANK.encode() + content[start + 64 :]
    return _required(path, hashlib.sha256(blank).hexdigest(), content[start : start + 64].decode(), run)


def check_tensor_file(path: Path, run: str) -> str:
    """Refuse a safetensors file that is not what was written, and return its seal. It is read in pieces.

    Args:
        path: the file.
        run: the command that makes it.

    Raises:
        ArtifactError: it cannot be read, has no seal, or another content.
    """
    try:
        head = header_text(path)
        start = 8 + _sealed_place(path, head, _IN_HEADER, run)
        with open_regular(path) as file:
            found = _digest(file, start)
    except (OSError, ValueError) as err:
        raise ArtifactError(f"{path}: not a readable safetensors file ({err}). Make it again: {run}") from err
    return _required(path, found, head[start - 8 : start + 56].decode(), run)


def require_same_seal(path: Path, header: Mapping[str, Any], seal: str, run: str) -> None:
    """Refuse a header that states another seal than the one that was checked, by writing the field's name otherwise.

    Raises:
        ArtifactError: it does.
    """
    if header.get(FIELD) != seal:
        raise ArtifactError(f"{path}: states {FIELD} {header.get(FIELD)!r} beside its seal. Make it again: {run}")


def _place(content: bytes, seal: re.Pattern[bytes]) -> int:
    """Return where the 64 digits begin."""
    found = list(seal.finditer(content))
    if len(found) != 1:
        raise ValueError(f"holds {len(found)} fields {FIELD} of 64 digits, expected 1")
    return found[0].start(1)


def _sealed_place(path: Path, content: bytes, seal: re.Pattern[bytes], run: str) -> int:
    try:
        return _place(content, seal)
    except ValueError as err:
        raise ArtifactError(f"{path}: {err}; it is not whole. Make it again: {run}") from err


def _required(path: Path, found: str, stated: str, run: str) -> str:
    if found != stated:
        raise ArtifactError(
            f"{path}: its bytes have sha256 {found[:12]}…, it states {stated[:12]}…: it changed after it was written. "
            f"Make it again: {run}"
        )
    return found


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
