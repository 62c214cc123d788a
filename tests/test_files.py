"""Outputs appear whole or not at all, and their bytes depend on their content alone."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neuronrank.errors import ArtifactError, StorageError
from neuronrank.files import (
    canonical_json,
    output_directory,
    output_file,
    read_header,
    read_json,
    sha256_file,
    write_json,
    write_tensors,
)


def test_a_failed_directory_leaves_the_earlier_one_and_no_litter(tmp_path):
    out = tmp_path / "out"
    with output_directory(out) as partial:
        (partial / "a").write_text("first")
    with pytest.raises(RuntimeError, match="stop"), output_directory(out) as partial:
        (partial / "a").write_text("second")
        raise RuntimeError("stop")
    assert (out / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_finished_directory_replaces_the_earlier_one_whole(tmp_path):
    out = tmp_path / "out"
    for name in ("a", "b"):
        with output_directory(out) as partial:
            (partial / name).write_text(name)
    assert [path.name for path in out.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_rename_that_fails_puts_the_earlier_directory_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with output_directory(out) as partial:
        (partial / "a").write_text("first")
    rename = Path.rename

    def refuse(path, target):
        if path.name.endswith(".partial"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StorageError), output_directory(out) as partial:
        (partial / "a").write_text("second")
    assert (out / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_refused_read_elsewhere_is_not_told_as_a_write(tmp_path):
    with pytest.raises(PermissionError), output_file(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "no", "/elsewhere/input")


def test_what_a_killed_run_left_behind_is_no_obstacle(tmp_path):
    litter = tmp_path / ".out.partial"
    litter.mkdir()
    (litter / "half").write_text("x")
    with output_directory(tmp_path / "out") as partial:
        (partial / "a").write_text("a")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_refused_write_is_a_storage_error_and_the_earlier_file_stays(tmp_path, code):
    path = tmp_path / "out.json"
    write_json(path, {"a": 1})
    with (
        pytest.raises(StorageError, match=f"out.json: cannot write: {os.strerror(code)}"),
        output_file(path) as partial,
    ):
        partial.write_text("half")
        raise OSError(code, os.strerror(code))
    assert read_json(path, "x") == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), output_file(tmp_path / "out"):
        raise FileNotFoundError(errno.ENOENT, "elsewhere")


def test_json_is_sorted_and_refuses_nan():
    assert canonical_json({"b": 1, "a": [0.5, None]}) == '{\n  "a": [\n    0.5,\n    null\n  ],\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="Out of range float values"):
        canonical_json({"a": float("nan")})


SCRIPT = """
import sys, numpy as np
from pathlib import Path
from neuronrank.files import write_tensors
keys = sys.argv[2].split(",")
write_tensors(Path(sys.argv[1]), {k: np.arange(3, dtype=np.float32) for k in keys}, {k: 1 for k in keys})
"""


def test_tensors_have_the_same_bytes_in_every_process_and_order(tmp_path):
    digests = set()
    for number, order in enumerate(["a,b,c,d", "d,c,b,a", "b,a,d,c"]):
        path = tmp_path / f"{number}.safetensors"
        environment = {**os.environ, "PYTHONHASHSEED": str(number)}
        subprocess.run([sys.executable, "-c", SCRIPT, str(path), order], check=True, env=environment)
        digests.add(sha256_file(path))
    assert len(digests) == 1


def test_a_header_of_another_schema_names_both(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": np.zeros(1, dtype=np.float32)}, {"schema": "neuronrank.scores/9"})
    with pytest.raises(
        ArtifactError, match=r"schema is 'neuronrank.scores/9', this version reads 'neuronrank.scores/1'"
    ):
        read_header(path, "neuronrank.scores/1", run="dvc repro score")


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64, b"not a tensor file at all"])
def test_corrupt_tensor_files_are_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="not a readable safetensors file"):
        read_header(path, "s", run="dvc repro")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_one_clear_error(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not allow mounting")
    try:
        write_tensors(small / "a.safetensors", {"a": np.zeros(1000, dtype=np.float32)}, {"schema": "s"})
        with pytest.raises(StorageError, match=r"a.safetensors: cannot write: .*No space left on device"):
            write_tensors(small / "a.safetensors", {"a": np.ones(1_000_000, dtype=np.float32)}, {"schema": "s"})
        assert [path.name for path in small.iterdir()] == ["a.safetensors"]
        assert read_header(small / "a.safetensors", "s", run="x")["schema"] == "s"
    finally:
        subprocess.run(["umount", str(small)], check=True)
