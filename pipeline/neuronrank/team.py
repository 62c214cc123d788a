"""PyTorch's own threads, for the compiled loops between two of its operations.

PyTorch's threads (GNU OpenMP's, in its Linux packages) go on spinning for milliseconds after an operation, so that the
next one begins at once. Threads of ours would share the cores with them, so the loops run on those threads themselves.
"""

import ctypes
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("neuronrank")
_TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run_on_all_threads(task: Callable[[], None]) -> None:
    """Call a function on so many threads as PyTorch uses, this one among them, and wait for all.

    Where PyTorch brings no GNU OpenMP, threads are started for it, which is logged once.

    Raises:
        BaseException: what the function raised, on whichever thread.
    """
    n_threads = torch.get_num_threads()
    if n_threads == 1:
        task()
        return
    start = _gnu_openmp()
    if start is None:
        with ThreadPoolExecutor(n_threads - 1) as others:
            waiting = [others.submit(task) for _ in range(n_threads - 1)]
            task()
            for other in waiting:
                other.result()
        return
    raised: list[BaseException] = []

    def guarded(_argument: int | None) -> None:
        try:
            task()
        except BaseException as err:  # noqa: BLE001  # nothing may be raised through foreign code
            raised.append(err)

    start(_TASK(guarded), None, n_threads, 0)
    if raised:
        raise raised[0]


@cache
def _gnu_openmp() -> Any | None:
    """Return `GOMP_parallel(function, argument, threads, flags)` of the OpenMP that PyTorch has loaded."""
    directory = Path(torch.__file__).parent / "lib"
    found = sorted(directory.glob("libgomp*.so*"))
    if not found:
        log.info("%s: holds no GNU OpenMP; loops run on threads of their own, which is slower", directory)
        return None
    return ctypes.CDLL(str(found[0])).GOMP_parallel
