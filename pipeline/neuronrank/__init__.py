"""Calibrate once, ask everything: pruning criteria for language models from one cached statistics artifact."""

import importlib
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuronrank.opening import OpenStatistics

__version__ = "0.1.0"


def open_statistics(path: str | PathLike[str]) -> "OpenStatistics":
    """Open a statistics artifact for reading: named arrays, lazily, as numpy. Needs neither torch nor the model.

    Args:
        path: its directory, for example `artifacts/statistics`.

    Raises:
        ArtifactError: missing, incomplete, corrupt, or of another schema.
    """
    # By name: what is imported here every stage would load, and depend on.
    opened: OpenStatistics = importlib.import_module("neuronrank.opening").OpenStatistics(path)
    return opened
