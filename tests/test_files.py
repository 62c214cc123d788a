"""Files in our formats: their bytes depend on their content alone, and what is not one of them is refused."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from neuronrank.errors import ArtifactError, StorageError
from neuronrank.files import canonical_json, read_header, sha256_file, write_tensors


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


def test_another_kind_of_artifact_is_not_taken_for_an_older_one(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": np.zeros(1, dtype=np.float32)}, {"schema": "neuronrank.scores/4"})
    with pytest.raises(
        ArtifactError, match=r"another kind of artifact, neuronrank.scores/4; expected neuronrank.masks/4"
    ):
        read_header(path, "neuronrank.masks/4", run="dvc repro prune")


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


KILLED_IN_THE_LIBRARY = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from neuronrank.files import write_tensors
if sys.argv[2] == "killed":
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
write_tensors(Path(sys.argv[1]), {"a": np.ones(100_000)}, {"schema": "s"})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on the size of files is the moment")
def test_what_the_library_leaves_when_it_is_killed_is_deleted_by_the_next_run(tmp_path):
    def run(how: str) -> int:
        command = [sys.executable, "-c", KILLED_IN_THE_LIBRARY, str(tmp_path / "x.safetensors"), how]
        return subprocess.run(command, check=False).returncode

    assert run("killed") == -signal.SIGXFSZ
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert any(name.startswith(".tmp") for name in left), f"the library has another way now: {left}"
    assert run("whole") == 0
    assert [path.name for path in tmp_path.rglob("*")] == ["x.safetensors"]
