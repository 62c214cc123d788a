"""Score factors on disk: what `score` computes and `prune` multiplies with the weights.

artifacts/scores/<recipe>.safetensors
  <module>.row, <module>.column            (O,), (I,) float32: factors; absent where the method has none
  <module>.row_term, <module>.column_term  (O,), (I,) float32: added; absent where the method has none
  neurons.<layer>[.<expert>]               (F,) float32: neuron scores; absent where the method has none
  header                                   schema; per part: method, parameters, weight_exp, weight_multi, default
                                           group; modules; provenance

score = weight_multi * |W|^weight_exp * row * column + row_term + column_term
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.errors import ArtifactError
from neuronrank.files import one_version, read_header, read_tensors, write_tensors
from neuronrank.headers import Scores, check_header

SCHEMA = "neuronrank.scores/4"
_RUN = "dvc repro score"

Factors = dict[str, NDArray[np.float32]]


def write_scores(path: Path, factors: Factors, header: dict[str, Any]) -> str:
    """Write factors and header, and return the file's seal.

    Raises:
        StorageError: the disk refused a write.
    """
    return write_tensors(path, factors, header)


def read_scores(path: Path) -> tuple[Factors, dict[str, Any]]:
    """Read factors and header.

    Raises:
        ArtifactError: missing, corrupt, of another schema, or with vectors that do not fit its modules.
    """
    with one_version(path):
        header = read_header(path, SCHEMA, _RUN)
        check_header(path, header, Scores, _RUN)
        factors = read_tensors(path)
    _require_fitting(path, factors, header)
    return factors, header


def _require_fitting(path: Path, factors: Factors, header: dict[str, Any]) -> None:
    sizes = {
        f"{module['name']}.{axis}{kind}": module["shape"][number]
        for module in header["modules"]
        for number, axis in enumerate(("row", "column"))
        for kind in ("", "_term")
    }
    for name, vector in factors.items():
        wanted = vector.size if name.startswith("neurons.") else sizes.get(name)
        if vector.dtype != np.float32 or vector.shape != (wanted,):
            raise ArtifactError(
                f"{path}: {name} is {vector.dtype} of shape {list(vector.shape)}, its modules ask for float32 of "
                f"shape {[wanted] if wanted is not None else 'nothing by that name'}. Make it again: {_RUN}"
            )
