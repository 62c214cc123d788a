"""Opening files that somebody else may have put there: none that is a pipe or a device, which would never end."""

import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, or a link to one.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read, or is a pipe, a device or a directory.
        ValueError: no file can have this name.
    """
    # Without O_NONBLOCK a pipe that nobody writes to would hold the process here.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
