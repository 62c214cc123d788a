"""One writer at a time for every output, by locks that the system holds and that end with their process."""

import contextlib
import errno
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from neuronrank.errors import StorageError
from neuronrank.storage import beside, explain_write_errors, is_private, sync_directory

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # every use asks first

log = logging.getLogger("neuronrank")
_HELD: ContextVar[frozenset[Path]] = ContextVar("_HELD", default=frozenset())
"""Outputs that this thread writes: what it calls writes them without another lock. Other threads do not see it."""
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
_MOST_MISSING = 1000
"""So often may a directory be missing that was just made, before its file system is taken for one without files."""
_SHOWN = 200
"""Characters of the other process's command that are told."""


@contextlib.contextmanager
def one_writer(path: Path, wait: bool = False) -> Iterator[bool]:
    """Be the only process that writes an output, until the block ends.

    The lock is `.<name>.lock` beside the output, held by flock: it goes with its process, even one that is killed. The
    file is deleted at the end; one that a killed process left is taken over. It tells who holds the lock, for people.
    Parent directories are made, and deleted again when nothing came to lie in them.

    In the same thread it may be nested. On Windows, and on file systems without locks, of which a warning tells,
    nothing is locked. Reading is never locked: whoever opens an output while it is replaced finds the earlier or the
    new one, but one who opens the files of a directory one by one may find some of each.

    Args:
        path: the output, a file or a directory.
        wait: until another process has ended; else its being there is an error.

    Yields:
        Whether there was another process to wait for.

    Raises:
        StorageError: another process is writing it; or the disk refused to hold the lock.
    """
    place = path.parent.resolve() / path.name
    if fcntl is None or place in _HELD.get() or is_private(path):
        yield False
        return
    with _emptied(path) as made:
        with explain_write_errors(path):
            held, waited = _acquire(path, wait)
        token = _HELD.set(_HELD.get() | {place})
        try:
            with explain_write_errors(path):
                for above in made:
                    sync_directory(above.parent)
            yield waited
        finally:
            _HELD.reset(token)
            _release(held, beside(path, "lock"))


@contextlib.contextmanager
def _emptied(path: Path) -> Iterator[list[Path]]:
    """Give the directories above an output that are to be made; those with nothing in them at the end are deleted."""
    missing = [above for above in path.parents if not above.exists()]
    try:
        yield missing
    finally:
        for above in missing:
            with contextlib.suppress(OSError):  # something lies in it
                above.rmdir()


def _acquire(path: Path, wait: bool) -> tuple[int, bool]:
    """Return the open lock file, and whether there was another process to wait for."""
    lock, waited, n_missing = beside(path, "lock"), False, 0
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)  # closed in programs that this one starts
        except FileNotFoundError as err:  # another process deletes parent directories that it made
            n_missing += 1
            if n_missing < _MOST_MISSING:
                continue
            unable = f"{path}: cannot write: no file can be made in {lock.parent}. Choose another place"
            raise StorageError(unable) from err
        owned = False
        try:
            if not _locked(held, path, wait and waited):
                if not wait:
                    who = _holder(held)
                    raise StorageError(f"{path}: {who} is writing it. Wait for it to end, then run again")
                log.info("%s: %s is writing it; waiting for it to end", path, _holder(held))
                waited = True
            elif _is_at(held, lock):  # else the one that held it has deleted it meanwhile
                owned = True
                os.truncate(held, 0)
                os.pwrite(held, f"{os.getpid()}\n{shlex.join(sys.orig_argv)}\n".encode(errors="replace"), 0)
                return held, waited
        except BaseException:
            _release(held, lock) if owned else os.close(held)
            raise
        os.close(held)


def _locked(held: int, path: Path, wait: bool) -> bool:
    """Lock an open file; False when another process holds it."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as err:
        if err.errno not in _NO_LOCKS:
            raise
        log.warning("%s: its file system has no locks; let no other process write it meanwhile", path)
    return True


def _holder(held: int) -> str:
    """Return what a lock file tells of the process that holds it."""
    pid, _, command = os.pread(held, 1 << 16, 0).decode(errors="replace").strip().partition("\n")
    if not pid:
        return "another process"
    shown = " ".join(command.split())
    return f"another process (pid {pid}, started as {shown[:_SHOWN]}{'…' * (len(shown) > _SHOWN)})"


def _is_at(held: int, lock: Path) -> bool:
    """Say whether a path still names an open file."""
    try:
        return os.path.samestat(os.fstat(held), lock.stat())
    except FileNotFoundError:
        return False


def _release(held: int, lock: Path) -> None:
    """Delete the lock file while it is still held, so that nobody's but this one is deleted, and let it go."""
    try:
        with contextlib.suppress(OSError):  # the next writer takes it over
            if _is_at(held, lock):
                lock.unlink()
    finally:
        os.close(held)
