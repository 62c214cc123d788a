"""Outputs that appear whole or not at all, whatever ends the run: an error, a kill, a full disk, a power cut.

Everything is written beside its place under a `.partial` name, synced to the disk and renamed when complete
(`storage.py`), by one process at a time (`locks.py`). What an interrupted run left beside is cleaned by the next one.
Nothing here imports torch.
"""

import contextlib
import hashlib
import logging
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from neuronrank.errors import NeuronrankError, SourceError, StorageError
from neuronrank.locks import one_writer
from neuronrank.storage import (
    beside,
    clean,
    explain_write_errors,
    is_private,
    remove,
    settle,
    sync_directory,
    sync_file,
    sync_tree,
    take_place,
)

log = logging.getLogger("neuronrank")
_INODE = "inode"
"""In a work directory: of the complete artifact, noted before it leaves."""


@contextlib.contextmanager
def output_directory(path: Path) -> Iterator[Path]:
    """Give an empty directory to fill; on success it becomes `path`, on failure it is deleted and `path` stays.

    Raises:
        StorageError: the disk refused a write, or another process is writing `path`.
    """
    with _written_beside(path) as partial:
        partial.mkdir(parents=True)
        yield partial
        sync_tree(partial)
        take_place(partial, path)
        settle(path)


@contextlib.contextmanager
def _written_beside(path: Path) -> Iterator[Path]:
    """Give a path where nothing is, beside an output that no other process writes; on failure it is deleted."""
    partial = beside(path, "partial")
    with one_writer(path), explain_write_errors(path):
        try:
            clean(path)
            yield partial
        except BaseException:
            remove(partial)
            raise


@contextlib.contextmanager
def resumable_directory(path: Path, key: str) -> Iterator[Path]:
    """Give a directory with what an interrupted run of the same key left; on success its `artifact/` becomes `path`.

    When it is killed or a write fails it stays for the next run; on an error of ours, which tells of bad input, it is
    deleted. `path` stays in any case. What a run of another key left is deleted, and so is what
    was written before the machine last started: it may not have reached the disk whole.

    Args:
        path: directory to write.
        key: SHA-256 of all that the content is made from.

    Yields:
        The directory. It holds `artifact/`, and whatever the run needs to go on besides.

    Raises:
        StorageError: the disk refused a write; another process is writing `path`, with this key or another; or `path`
            holds something else than an artifact.
    """
    work = beside(path, hashlib.sha256((key + boot_id()).encode()).hexdigest()[:16] + ".partial")
    artifact = work / "artifact"
    with one_writer(path), explain_write_errors(path, work):
        _take_back(path, work)
        clean(path)
        _require_replaceable(path)
        for other in _work_directories(path):
            if other != work or not artifact.exists():  # without it the run had ended, but for cleaning up
                log.info("%s: deleted; an interrupted run of other input, code or processes left it", other)
                remove(other)
        for half_written in artifact.rglob("*.partial"):
            remove(half_written)
        artifact.mkdir(parents=True, exist_ok=True)
        try:
            yield work
        except NeuronrankError as err:
            if not isinstance(err, StorageError):  # of other input the run would have another key
                with contextlib.suppress(OSError):  # what is wrong is told, and the next run cleans
                    remove(work)
            raise
        except KeyboardInterrupt:
            log.info("%s: what was done is kept; the same command goes on with it", work)
            raise
        sync_tree(artifact)
        # Out of the work directory first: were they exchanged in there, a run that is killed right then would leave
        # the earlier artifact where the next one looks for its own.
        (work / _INODE).write_text(str(artifact.stat().st_ino), encoding="ascii")
        complete = artifact.rename(beside(path, "partial"))
        try:
            take_place(complete, path)
        except OSError:
            complete.rename(artifact)
            raise
        settle(path)
        remove(work)


@contextlib.contextmanager
def new_output(path: Path) -> Iterator[None]:
    """Be the only process that makes an output, from the check that nothing is there until the block ends.

    Raises:
        SourceError: `path` exists. What a run left beside it that was killed as it ended is cleaned: no next one would.
        StorageError: another process is writing it; or the disk refused to hold the lock.
    """
    with one_writer(path):
        if os.path.lexists(path):
            with contextlib.suppress(OSError):
                _clean_ended(path)
            raise SourceError(f"{path}: already exists; choose another place or delete it first")
        yield


def _clean_ended(path: Path) -> None:
    """Clean what runs left that had ended; the work of one that has not may be hours of another command's."""
    works = _work_directories(path)
    for work in works:
        _take_back(path, work)
    clean(path)
    for work in works:
        if not (work / "artifact").exists():
            remove(work)


def _take_back(path: Path, work: Path) -> None:
    """Put a complete artifact back that was killed on its way from the work directory to its place.

    Once it has taken its place the earlier artifact lies there instead, which is another directory.
    """
    complete, noted = beside(path, "partial"), work / _INODE
    if complete.is_dir() and noted.exists() and noted.read_text(encoding="ascii") == str(complete.stat().st_ino):
        complete.rename(work / "artifact")


def _require_replaceable(path: Path) -> None:
    if path.exists() and not (path / "manifest.json").exists() and not (path.is_dir() and not any(path.iterdir())):
        raise StorageError(f"{path}: exists and is no statistics artifact. Choose another place, or delete it first")


def _work_directories(path: Path) -> list[Path]:
    """Return what interrupted runs of this output left, and of no other output whose name begins alike."""
    named = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.partial")
    return [other for other in path.parent.iterdir() if named.fullmatch(other.name)]


def require_no_directory(path: Path) -> None:
    """Refuse to write a file where a directory is.

    Raises:
        StorageError: it is one.
    """
    if path.is_dir():
        raise StorageError(f"{path}: is a directory, and a file is to be written there. Choose another place")


def boot_id() -> str:
    """Return what differs each time the machine starts; where the system does not tell, each time it is asked."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return uuid.uuid4().hex


@contextlib.contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """Give a path to write; on success it becomes `path`, on failure it is deleted and `path` stays.

    Raises:
        StorageError: the disk refused a write, or another process is writing `path`.
    """
    with _written_beside(path) as partial:
        require_no_directory(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if is_private(path):  # synced with all around it
            partial.replace(path)
        else:
            sync_file(partial)
            partial.replace(path)
            sync_directory(path.parent)
