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

from neuronrank.files import read_header, read_tensors, write_tensors

SCHEMA = "neuronrank.scores/3"
_REQUIRED = ("recipe", "parts", "modules", "lm_head", "n_layers", "model", "calibration", "collect")
_RUN = "dvc repro score"

Factors = dict[str, NDArray[np.float32]]


def write_scores(path: Path, factors: Factors, header: dict[str, Any]) -> None:
    """Write factors and header.

    Raises:
        StorageError: the disk refused a write.
    """
    write_tensors(path, factors, header)


def read_scores(path: Path) -> tuple[Factors, dict[str, Any]]:
    """Read factors and header.

    Raises:
        ArtifactError: missing, corrupt, or of another schema.
    """
    header = read_header(path, SCHEMA, _RUN, _REQUIRED)
    return read_tensors(path), header
