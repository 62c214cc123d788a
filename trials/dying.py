"""A command that ends by SIGKILL at a given moment of its writing: `python -m trials.dying MODULE ARGUMENT...`.

Python tells its audit hooks of every file that is opened, renamed or deleted. It tells of no fsync and no exchange, but
each lies between two openings. Of what a library does in one call, and of what lies between two writes of one file, it
tells nothing: there a limit on the size of files is the moment, since the system signals the write that would cross it
and has by then written what fits.
"""

import contextlib
import ctypes
import itertools
import json
import os
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

VARIABLE = "NEURONRANK_TRIAL"
BEFORE, WHILE, AFTER = "before", "while", "after"
_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
_DIRECTORY_OF = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}
"""Where an event holds the directory that its path is relative to."""


@dataclass(frozen=True)
class Moment:
    """When a command is to die."""

    out: str
    """Absolute; what happens below it is counted."""
    first: str
    """The first output in it."""
    starter: int
    """Process whose child the command is: it and all that the command started die, the starter does not."""
    state: str = BEFORE
    """How far the first output is: nothing begun, something half-written, or the new one in its place."""
    event: int | None = None
    """Number of the event in that state, from 0; None: it lives."""
    limit: int | None = None
    """Not at that event, but when a file that is written from it on grows beyond so many bytes."""
    log: str | None = None
    """File to write a line for every event to: seconds since 1970, and the state."""

    def environment(self) -> dict[str, str]:
        """Return what the command finds its moment by."""
        return {VARIABLE: json.dumps(asdict(self))}


def main() -> None:
    """Run the module as `python -m` would. Of several processes the first one dies, and takes the others with it."""
    moment = Moment(**json.loads(os.environ.pop(VARIABLE)))
    sys.argv = sys.argv[1:]
    if int(os.environ.get("RANK", "0")) == 0:
        sys.addaudithook(_watch(moment))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def kill_all(top: psutil.Process) -> None:
    """Kill a process, before it can act on the end of its children, and then all that it started."""
    below = [process for process in top.children(recursive=True) if process.pid != os.getpid()]
    for process in (top, *below):
        if process.pid != os.getpid():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


def _die(starter: int) -> None:
    top = psutil.Process()
    while top.ppid() not in (starter, 1):
        top = top.parent() or top
    kill_all(top)
    os.kill(os.getpid(), signal.SIGKILL)


def _watch(moment: Moment) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook."""
    first, partials = Path(moment.out, moment.first), set[Path]()
    begun = _inode(first)
    numbers = {state: itertools.count() for state in (BEFORE, WHILE, AFTER)}
    log = os.open(moment.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if moment.log else None

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS:
            return
        paths = [path for path in _paths(event, arguments) if f"{path}/".startswith(f"{moment.out}/")]
        if not paths:
            return
        partials.update(above for path in paths for above in (path, *path.parents) if above.suffix == ".partial")
        half_written = any(os.path.lexists(partial) for partial in list(partials))
        state = AFTER if _inode(first) != begun else WHILE if half_written else BEFORE
        number = next(numbers[state])
        if log is not None:
            os.write(log, f"{time.time()} {state}\n".encode())
        if (state, number) == (moment.state, moment.event):
            if moment.limit is None:
                _die(moment.starter)
            else:
                _limit_files(moment.limit, moment.starter)

    return hook


def _paths(event: str, arguments: tuple[Any, ...]) -> list[Path]:
    """Return the paths of an event, absolute; an open file is no path."""
    place = arguments[_DIRECTORY_OF[event]] if event in _DIRECTORY_OF else -1
    above = Path(f"/proc/self/fd/{place}").readlink() if place is not None and place >= 0 else Path.cwd()
    paths = arguments[:2] if event in {"os.rename", "os.link", "os.symlink"} else arguments[:1]
    return [above / os.fsdecode(path) for path in paths if isinstance(path, (str, bytes, os.PathLike))]


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _limit_files(limit: int, starter: int) -> None:
    """Die in the middle of the write that would make a file longer."""
    library = ctypes.CDLL(None)
    _KEPT.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _number: _die(starter)))
    library.signal(signal.SIGXFSZ, _KEPT[0])  # Python's own handler would run after the write
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


_KEPT: list[Any] = []
"""What the system calls must not be collected."""

if __name__ == "__main__":
    main()
