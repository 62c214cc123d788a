"""Per-window losses on disk: text -> (N,) float64, nat/token, so that any two results can be compared in pairs."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.errors import MismatchError
from neuronrank.files import read_header, read_tensors, write_tensors

SCHEMA = "neuronrank.losses/1"
_REQUIRED = ("model", "dtype", "device", "texts")


def write_losses(path: Path, losses: dict[str, NDArray[np.float64]], header: dict[str, Any]) -> None:
    """Write the losses of every text.

    Raises:
        StorageError: the disk refused a write.
    """
    write_tensors(path, losses, {"schema": SCHEMA, **header})


def read_losses(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read the losses of every text.

    Raises:
        ArtifactError: missing, corrupt, or of another schema.
    """
    read_losses_header(path)
    return read_tensors(path)


def read_losses_header(path: Path) -> dict[str, Any]:
    """Read what the losses were measured on.

    Raises:
        ArtifactError: missing, corrupt, or of another schema.
    """
    return read_header(path, SCHEMA, "dvc repro eval", _REQUIRED)


def require_comparable(path: Path, header: dict[str, Any], other_path: Path, other: dict[str, Any]) -> None:
    """Refuse to compare losses of different models, windows or number types.

    Raises:
        MismatchError: names what differs.
    """
    for what, one, two in (
        ("model", header["model"]["fingerprint"], other["model"]["fingerprint"]),
        ("dtype", header["dtype"], other["dtype"]),
        ("evaluation windows", _digests(header), _digests(other)),
    ):
        if one != two:
            raise MismatchError(f"{path} and {other_path}: measured with another {what} ({one}, {two}). Run: dvc repro")


def _digests(header: dict[str, Any]) -> dict[str, str]:
    return {text: entry["sha256"][:12] for text, entry in sorted(header["texts"].items())}
