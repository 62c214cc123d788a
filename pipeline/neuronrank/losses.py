"""Per-window losses on disk: text -> (N,) float64, nat/token, so that any two results can be compared in pairs."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.errors import ArtifactError, MismatchError
from neuronrank.files import one_version, read_header, read_tensors, write_tensors
from neuronrank.headers import Losses, check_header

SCHEMA = "neuronrank.losses/2"
_RUN = "dvc repro eval"


def write_losses(path: Path, losses: dict[str, NDArray[np.float64]], header: dict[str, Any]) -> str:
    """Write the losses of every text, and return the file's seal.

    Raises:
        StorageError: the disk refused a write.
    """
    return write_tensors(path, losses, {"schema": SCHEMA, **header})


def read_losses(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read the losses of every text.

    Raises:
        ArtifactError: missing, corrupt, of another schema, or with losses that are not those of its texts.
    """
    with one_version(path):
        texts, losses = read_losses_header(path)["texts"], read_tensors(path)
    for name in sorted(texts.keys() | losses.keys()):
        wanted = (texts[name]["n_windows"],) if name in texts else "none"
        held = losses[name].shape if name in losses else "none"
        if held != wanted or losses[name].dtype != np.float64 or not np.isfinite(losses[name]).all():
            raise ArtifactError(
                f"{path}: losses of {name!r} have shape {held}, its header says {wanted}; or they are no finite "
                f"float64. Make it again: {_RUN}"
            )
    return losses


def read_losses_header(path: Path) -> dict[str, Any]:
    """Read what the losses were measured on.

    Raises:
        ArtifactError: missing, corrupt, or of another schema.
    """
    header = read_header(path, SCHEMA, _RUN)
    check_header(path, header, Losses, _RUN)
    return header


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
