"""Packages of the ordinary Python registry as a source of files: downloaded once, checked, never installed."""

import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import platformdirs
from pydantic import Field

from neuronrank.errors import SourceError
from neuronrank.files import sha256_file
from neuronrank.locks import one_writer
from neuronrank.outputs import output_file
from neuronrank.params import Section
from neuronrank.storage import beside, remove

log = logging.getLogger(__name__)

_PLATFORM = ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--implementation", "cp")
"""One fixed target, so that every machine gets the same wheel with the same checksum. It is read, never installed."""


class Wheel(Section):
    """A wheel of the Python package registry, pinned by version and checksum."""

    package: str
    version: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


def cache_directory() -> Path:
    """Return the private download cache: $NEURONRANK_CACHE_DIR, or the user's cache directory."""
    chosen = os.environ.get("NEURONRANK_CACHE_DIR")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("neuronrank"))


def fetch_wheel(wheel: Wheel) -> Path:
    """Return the path of a wheel in the cache, downloading it when it is not there.

    Raises:
        SourceError: the registry does not give it, or its checksum is not the pinned one.
        StorageError: the cache cannot be written.
    """
    kept = cache_directory() / "wheels" / f"{wheel.package}-{wheel.version}-{wheel.sha256[:16]}.whl"
    if _is_kept(wheel, kept):
        return kept
    with one_writer(kept, wait=True) as waited:
        if not (waited and _is_kept(wheel, kept)):
            _keep(wheel, kept)
    return kept


def _is_kept(wheel: Wheel, kept: Path) -> bool:
    if not kept.exists():
        return False
    if sha256_file(kept) != wheel.sha256:
        log.warning("%s: its checksum is wrong, downloading it again", kept)
        return False
    log.info("%s %s: taken from the cache", wheel.package, wheel.version)
    return True


def _keep(wheel: Wheel, kept: Path) -> None:
    """Download a wheel and put it in its place when its checksum is right."""
    folder = beside(kept, "download")
    with output_file(kept) as partial:
        remove(folder)  # a killed run left it
        folder.mkdir()
        try:
            got = _download(wheel, folder)
            found = sha256_file(got)
            if found != wheel.sha256:
                raise SourceError(
                    f"{got.name}: sha256 is {found}, expected {wheel.sha256}. "
                    f"The registry gave another file than the pinned one; nothing was kept"
                )
            got.replace(partial)
        finally:
            remove(folder)


def _download(wheel: Wheel, folder: Path) -> Path:
    requirement = f"{wheel.package}=={wheel.version}"
    log.info("downloading %s from the package registry", requirement)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(  # a fixed command, no shell
        [*command, *_PLATFORM, "--dest", str(folder), requirement], capture_output=True, text=True, check=False
    )
    files = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(files) != 1:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SourceError(f"{requirement}: cannot be downloaded: {reason}. Check the network or the package index")
    return files[0]


@contextmanager
def open_member(wheel: Path, member: str) -> Iterator[IO[bytes]]:
    """Open one file inside a wheel for reading.

    Raises:
        SourceError: the wheel is not a zip file or has no such member.
    """
    try:
        archive = zipfile.ZipFile(wheel)
    except (zipfile.BadZipFile, OSError) as err:
        raise SourceError(f"{wheel}: not a readable wheel ({err}). Delete it and run again") from err
    with archive:
        try:
            file = archive.open(member)
        except KeyError as err:
            raise SourceError(f"{wheel}: has no member {member!r}") from err
        with file:
            yield file
