"""Token windows on disk: (N, T) token ids and where they came from."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.errors import ArtifactError, MismatchError
from neuronrank.files import one_version, read_header, read_tensors, write_tensors
from neuronrank.headers import Tokens, check_header

SCHEMA = "neuronrank.tokens/2"
_RUN = "dvc repro prepare"


@dataclass(frozen=True)
class Windows:
    """Token windows of equal length and where each came from."""

    token_ids: NDArray[np.int32]
    """(N, T)."""
    header: dict[str, Any]

    @property
    def n_tokens(self) -> int:
        """Number of tokens in all windows, N*T."""
        return int(self.token_ids.size)

    @property
    def sha256(self) -> str:
        """SHA-256 of the token ids, row-major int32."""
        return hashlib.sha256(np.ascontiguousarray(self.token_ids).data).hexdigest()


def write_windows(path: Path, token_ids: NDArray[np.int32], header: dict[str, Any]) -> None:
    """Write windows with their provenance.

    Raises:
        StorageError: the disk refused a write.
    """
    write_tensors(path, {"token_ids": token_ids}, {"schema": SCHEMA, **header})


def read_windows(path: Path) -> Windows:
    """Read windows.

    Raises:
        ArtifactError: missing, corrupt, of another schema, or without token ids of the length that it states.
    """
    with one_version(path):
        header = read_header(path, SCHEMA, _RUN)
        check_header(path, header, Tokens, _RUN)
        tensors = read_tensors(path)
    ids = tensors.get("token_ids", np.zeros(0, np.int32))
    n_tokens = header["window_tokens"]
    if tensors.keys() != {"token_ids"} or ids.dtype != np.int32 or ids.ndim != 2 or ids.shape[1] != n_tokens:
        raise ArtifactError(
            f"{path}: holds {', '.join(tensors) or 'nothing'}, {ids.dtype} of shape {list(ids.shape)}; expected "
            f"token_ids, int32 of shape [N, {n_tokens}]. Make it again: {_RUN}"
        )
    if not ids.size or ids.min() < 0:
        raise ArtifactError(f"{path}: token_ids are none, or negative. Make it again: {_RUN}")
    return Windows(ids, header)


def read_evaluation_windows(directory: Path, tokenizer_sha256: str) -> dict[str, Windows]:
    """Read the windows of every evaluation text.

    Raises:
        ArtifactError: there are none, or one is corrupt.
        MismatchError: another tokenizer made them.
    """
    texts = {}
    for path in sorted(directory.glob("*.safetensors")):
        texts[path.stem] = read_windows(path)
        require_same_tokenizer(texts[path.stem], path, tokenizer_sha256)
    if not texts:
        raise ArtifactError(f"{directory}: holds no evaluation windows. Run: {_RUN}")
    return texts


def require_same_tokenizer(windows: Windows, path: Path, tokenizer_sha256: str) -> None:
    """Refuse tokens that another tokenizer made.

    Raises:
        MismatchError: names both tokenizers.
    """
    found = windows.header["tokenizer_sha256"]
    if found != tokenizer_sha256:
        raise MismatchError(
            f"{path}: made by tokenizer {found[:12]}…, the model's tokenizer is {tokenizer_sha256[:12]}…. Run: {_RUN}"
        )
