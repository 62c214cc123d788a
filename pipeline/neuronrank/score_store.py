"""Score factors on disk: what `score` computes and `prune` multiplies with the weights.

artifacts/scores/<recipe>.safetensors
  <module>.row     (O,) float32, absent where the method has no row factor
  <module>.column  (I,) float32, absent where the method has no column factor
  header           schema, per part: method, parameters, weight_exp, default group; modules; provenance
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.files import read_header, read_tensors, write_tensors

SCHEMA = "neuronrank.scores/1"
_REQUIRED = ("recipe", "parts", "modules", "n_layers", "model", "calibration", "collect")
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
