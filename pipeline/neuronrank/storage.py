"""What the disk must do for an output to appear whole: take a place in one step, reach the disk, say why it cannot.

Nothing here imports anything but the standard library and safetensors.
"""

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import safetensors

from neuronrank.errors import StorageError

_REFUSED_WRITES = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST),
    *(errno.EBUSY, errno.EXDEV),  # the output is a mount point, or lies in a lower layer of an overlay
    *(errno.EIO, errno.ENAMETOOLONG),
}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}
"""What kernels, file systems and sandboxes without the exchange answer; two renames tell a true refusal."""
SAVING = "saving.partial"
"""Kind of what lies beside an output (`beside`): a directory where a library writes files of random names."""
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def explain_write_errors(target: Path, kept: Path | None = None) -> Iterator[None]:
    """Turn a refused write below `target` into a StorageError that says where and why.

    Args:
        target: what is written.
        kept: where what was done so far stays for the next run.

    Raises:
        StorageError: no space, read-only, no permission, a size limit, or an input/output error.
    """
    try:
        yield
    except OSError as err:
        if err.errno not in _REFUSED_WRITES or not _concerns(err, target):
            raise
        raise StorageError(_storage_message(target, _reason(err, target), err.errno in _FULL, kept)) from err
    except safetensors.SafetensorError as err:
        # The library reports an OSError as text: "I/O error: No space left on device (os error 28)".
        codes = {code for code in _REFUSED_WRITES if f"(os error {code})" in str(err)}
        if not codes:
            raise
        raise StorageError(_storage_message(target, str(err), bool(codes & _FULL), kept)) from err


def _concerns(err: OSError, target: Path) -> bool:
    """Say whether an error is of the target, of what lies in it, beside it or above it; one that names no file is."""
    named = _named(err)
    return not named or any(_is_of(name, _place(target)) for name in named)


def _named(err: OSError) -> list[Path]:
    names = (name for name in (err.filename, err.filename2) if isinstance(name, str | bytes))
    return [_place(Path(os.fsdecode(name))) for name in names]


def _place(path: Path) -> Path:
    """Return a path from the root on, links above it followed, but not one that it may be itself."""
    return Path(os.path.realpath(path.parent)) / path.name


def _is_of(name: Path, target: Path) -> bool:
    if name == target or name in target.parents:
        return True
    if target.parent not in name.parents:
        return False
    first = name.relative_to(target.parent).parts[0]
    return first == target.name or first.startswith(f".{target.name}.")


def _reason(err: OSError, target: Path) -> str:
    """Return what the system says, with the file that it says it of unless that is the target itself."""
    of = [name for name in _named(err) if name != _place(target) and _is_of(name, _place(target))]
    return f"{err.strerror}{f' ({of[-1]})' if of else ''}"


def _storage_message(target: Path, reason: str, full: bool, kept: Path | None) -> str:
    left = f"What was done is kept in {kept}" if kept and kept.exists() else "Nothing half-written is left"
    cure = "Free space there" if full else "Mend that, or choose another place"
    return f"{target}: cannot write: {reason}. {left}. {cure}, then run again"


def beside(path: Path, kind: str) -> Path:
    """Return `.<name>.<kind>` in the same directory, hidden and on the same file system.

    Raises:
        StorageError: the path ends in no name, so that nothing could take its place.
    """
    if path.name in ("", ".."):
        raise StorageError(f"{path}: ends in no name; an output needs one of its own, for example {path / 'out'}")
    return path.with_name(f".{path.name}.{kind}")


def is_private(path: Path) -> bool:
    """Say whether a path lies in a directory that is being written; it is its writer's own until that takes its place.

    So nothing in there needs a lock, or has to reach the disk before the whole of it does.
    """
    return any(above.name.startswith(".") and above.name.endswith(".partial") for above in path.absolute().parents)


def set_usual_mode(path: Path) -> None:
    """Give a file the mode that any new one gets: libraries make theirs private."""
    current = os.umask(0)
    os.umask(current)
    path.chmod(0o666 & ~current)


def sync_file(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until what a directory lists is on the disk: without it a rename may be lost with the power.

    Windows has no such thing, and some network file systems refuse it: there nothing happens.
    """
    if os.name == "nt":
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(opened)


def sync_tree(root: Path) -> None:
    """Wait until a directory and all below it are on the disk."""
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            continue
        if path.is_dir():
            sync_directory(path)
        elif path.is_file():
            sync_file(path)
    sync_directory(root)


def take_place(partial: Path, path: Path) -> None:
    """Put a complete directory, on the disk already, in the place of whatever is at `path`.

    On Linux both are exchanged in one step: at every moment there is the earlier or the new one. Where a system or a
    file system cannot do that, two renames, with the earlier one at `.<name>.old` between them. `settle` follows.

    Args:
        partial: `.<name>.partial` beside `path`; the earlier one lies there afterwards, or at `.<name>.old`.
        path: to replace.

    Raises:
        OSError: refused; then all is as it was.
    """
    if not os.path.lexists(path):
        partial.rename(path)
    elif not _exchange(partial, path):
        _replace_in_two_steps(partial, path)


def settle(path: Path) -> None:
    """Wait until an output's new name is on the disk, and only then delete the earlier one."""
    sync_directory(path.parent)
    clean(path)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; False where there is no such thing."""
    call = _renameat2()
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


@cache
def _renameat2() -> Callable[..., Any] | None:
    """Return the system's function; None where there is none."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, TypeError, AttributeError):  # no Linux, or an old C library
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    call.restype = ctypes.c_int
    return call


def _replace_in_two_steps(partial: Path, path: Path) -> None:
    old = beside(path, "old")
    path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        old.rename(path)
        raise


def clean(path: Path) -> None:
    """Delete what an interrupted run left beside an output, and put back an earlier output that it had moved away."""
    old = beside(path, "old")
    if os.path.lexists(old) and not os.path.lexists(path):
        old.rename(path)
    remove(old)
    for kind in ("partial", SAVING):
        remove(beside(path, kind))


def remove(path: Path) -> None:
    """Delete a file, a link or a directory, when there is one."""
    while path.is_dir() and not path.is_symlink():
        with contextlib.suppress(FileNotFoundError):  # another process deletes some of it meanwhile
            shutil.rmtree(path)
    path.unlink(missing_ok=True)
