"""The hidden states of all calibration documents between two layers: in memory, or in two files by turns."""

import errno
import os
from pathlib import Path

import torch
from torch import Tensor

_BLOCK = 1 << 24


class HiddenStates:
    """What enters a layer, (N, T, H), while what leaves it is written.

    With a directory they are memory-mapped: the system keeps in memory what fits. What enters a layer stays as it was
    until the next layer begins, so that a layer that was interrupted can run again.
    """

    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype, directory: Path | None, both: bool = False
    ) -> None:
        """Allocate them.

        Args:
            shape: (N, T, H).
            dtype: of the forward pass.
            directory: where the files are; those of an interrupted run are found again. None keeps all in memory.
            both: in memory too keep what enters a layer apart from what leaves it.
        """
        if directory is None:
            self._by_turns = [torch.empty(shape, dtype=dtype) for _ in range(1 + both)]
        else:
            self._by_turns = _mapped(shape, dtype, directory)

    def entering(self, layer: int) -> Tensor:
        """Return what enters a layer, (N, T, H), to be read or, before the first layer, filled."""
        return self._by_turns[layer % len(self._by_turns)]

    def leaving(self, layer: int) -> Tensor:
        """Return where what leaves a layer is written, (N, T, H)."""
        return self.entering(layer + 1)


def _mapped(shape: tuple[int, int, int], dtype: torch.dtype, directory: Path) -> list[Tensor]:
    n_values = shape[0] * shape[1] * shape[2]
    paths = (directory / "hidden-0.bin", directory / "hidden-1.bin")
    for path in paths:
        _allocate(path, n_values * dtype.itemsize)
    return [torch.from_file(str(path), shared=True, size=n_values, dtype=dtype).view(shape) for path in paths]


def _allocate(path: Path, size: int) -> None:
    """Take the space on disk now: writing through a map to a full disk would end the process without a word.

    Raises:
        OSError: there is not so much space.
    """
    path.touch()
    with path.open("r+b") as file:  # to be read too: where the disk cannot allocate, libc reads and writes each block
        if os.fstat(file.fileno()).st_size == size:
            return
        file.truncate(0)
        if not _allocated(file.fileno(), size):
            for start in range(0, size, _BLOCK):
                file.write(bytes(min(_BLOCK, size - start)))


def _allocated(descriptor: int, size: int) -> bool:
    """Ask the system for the space; False where it cannot."""
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as err:
        if err.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        return False
    return True
