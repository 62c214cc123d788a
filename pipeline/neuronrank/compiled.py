"""How loops are compiled for the CPU: once, kept beside the source, and without the interpreter's lock."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Loop = TypeVar("Loop", bound=Callable[..., Any])
compiled: Callable[[Loop], Loop] = numba.njit(nogil=True, cache=True, error_model="numpy")
