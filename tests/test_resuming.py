"""Collect is killed, and run again: the same bytes, and at most one layer twice."""

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from neuronrank import collecting, collection
from neuronrank.checkpoint import open_model
from neuronrank.collection import CollectParams
from neuronrank.errors import NotFiniteError
from neuronrank.fetching import fetch_model
from neuronrank.hidden_states import HiddenStates
from neuronrank.outputs import resumable_directory
from neuronrank.ranks import ALONE, Ranks
from neuronrank.windows import Windows
from tests.imports import ROOT

N_LAYERS = 6
OPTIONS = {
    "dtype": "float32",
    "documents_per_batch": 2,
    "profile": "full",
    "classes": 5,
    "topics": {"micro_topics": 4, "iterations": 4, "seed": 0},
    "gram": True,
}
SCRIPT = """
import os, sys, time
from pathlib import Path
from tests.test_resuming import collect
from neuronrank import collection
from neuronrank.ranks import joined
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # in one piece: print's pieces mix with the other's
count = collection._count
def slow(*arguments, **keywords):
    time.sleep(float(sys.argv[3]))
    say("layer", arguments[2])
    return count(*arguments, **keywords)
collection._count = slow
with joined() as ranks:
    say("process", ranks.rank, os.getpid())
    collect(Path(sys.argv[1]), Path(sys.argv[2]), ranks)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of six tiny layers, as fetch leaves it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.conftest import write_tokenizer

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=N_LAYERS, num_attention_heads=2
    )
    source = tmp_path_factory.mktemp("deep")
    LlamaForCausalLM(config).save_pretrained(source)
    write_tokenizer(source)
    fetched = tmp_path_factory.mktemp("fetched") / "model"
    fetch_model({"source": "path", "path": str(source)}, fetched)
    return fetched


def collect(model: Path, out: Path, ranks: Ranks = ALONE) -> None:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 64, (5, 12), generator=generator, dtype=torch.int32).numpy()
    windows = Windows(tokens, {"seed": 0, "source": {}, "origins": []})
    setup = collecting.Setup(ranks=ranks)
    collecting.collect_statistics(open_model(model), windows, CollectParams.model_validate(OPTIONS), out, setup)


def files_of(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The bytes of a run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "statistics"
    collect(model, out)
    return files_of(out)


def start(model: Path, out: Path, pause: float) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'pipeline'}:{ROOT}"}
    command = [sys.executable, "-c", SCRIPT, str(model), str(out), str(pause)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_killed_run_goes_on_where_it_was(model, whole, tmp_path, at, monkeypatch):
    """Killed somewhere in a layer: the next run begins with it, and leaves the bytes of a run that was not killed."""
    out = tmp_path / "statistics"
    with start(model, out, 0.25) as run:
        assert run.stdout is not None
        while run.stdout.readline().strip() != f"layer {at}":
            assert run.poll() is None
        time.sleep(0.02 * at)
        run.send_signal(signal.SIGKILL)
    assert not out.exists()
    ran, count = [], collection._count

    def noted(*arguments, **keywords):
        ran.append(arguments[2])
        return count(*arguments, **keywords)

    monkeypatch.setattr(collection, "_count", noted)
    collect(model, out)
    assert ran[0] in (at, at + 1)
    assert ran == list(range(ran[0], N_LAYERS))
    assert files_of(out) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["statistics"]


def test_a_run_killed_at_three_random_moments_ends_with_the_same_bytes(model, whole, tmp_path):
    out = tmp_path / "statistics"
    delays = [random.uniform(0, 0.9) for _ in range(3)]
    for delay in delays:
        with start(model, out, 0.15) as run:
            assert run.stdout is not None
            while "layer" not in run.stdout.readline() and run.poll() is None:
                pass
            time.sleep(delay)
            run.send_signal(signal.SIGKILL)
    collect(model, out)
    assert files_of(out) == whole, f"killed after {delays} s"
    assert [path.name for path in tmp_path.iterdir()] == ["statistics"]


def start_two(model: Path, out: Path, pause: float) -> subprocess.Popen:
    script = out.parent / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'pipeline'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    arguments = [str(model), str(out), str(pause)]
    return subprocess.Popen([*command, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_one_of_two_processes_is_killed_and_both_go_on(model, tmp_path, victim):
    (tmp_path / "straight").mkdir()
    (tmp_path / "killed").mkdir()
    with start_two(model, tmp_path / "straight/statistics", 0.0) as run:
        run.communicate(timeout=200)
    assert run.returncode == 0
    out, process = tmp_path / "killed/statistics", {}
    with start_two(model, out, 1.0) as run:
        assert run.stdout is not None
        for line in run.stdout:
            words = line.split()
            if words[0] == "process":
                process[int(words[1])] = int(words[2])
            if words == ["layer", "3"] and len(process) == 2:
                os.kill(process[victim], signal.SIGKILL)
                break
        run.communicate(timeout=200)
    assert run.returncode != 0
    assert not out.exists()
    with start_two(model, out, 0.0) as again:
        done, _ = again.communicate(timeout=200)
    assert again.returncode == 0
    ran = [int(line.split()[1]) for line in done.splitlines() if line.startswith("layer")]
    assert min(ran) in (2, 3), "complete layers do not run again"
    assert files_of(out) == files_of(tmp_path / "straight/statistics")
    assert sorted(path.name for path in out.parent.iterdir()) == ["script.py", "statistics"]


def test_hidden_states_that_a_layer_has_half_written_are_not_what_it_begins_with(model, whole, tmp_path, monkeypatch):
    count, failed = collection._count, []

    def fail_once(*arguments, **keywords):
        found = count(*arguments, **keywords)
        if arguments[2] == 3 and not failed:
            failed.append(3)
            raise RuntimeError("stop")
        return found

    monkeypatch.setattr(collection, "_count", fail_once)
    with pytest.raises(RuntimeError, match="stop"):
        collect(model, tmp_path / "statistics")
    collect(model, tmp_path / "statistics")
    assert files_of(tmp_path / "statistics") == whole


def test_an_interruption_while_small_arrays_are_joined(model, whole, tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise RuntimeError("stop")

    with monkeypatch.context() as patch:
        patch.setattr("neuronrank.statistics_writer.write_sealed_json", refuse)
        with pytest.raises(RuntimeError, match="stop"):
            collect(model, tmp_path / "statistics")
    monkeypatch.setattr(collection, "_count", lambda *_a, **_k: pytest.fail("a layer ran again"))
    collect(model, tmp_path / "statistics")
    assert files_of(tmp_path / "statistics") == whole


def test_other_settings_do_not_go_on_with_it(model, tmp_path, monkeypatch):
    monkeypatch.setattr(collection, "_count", lambda *_a, **_k: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError):
        collect(model, tmp_path / "statistics")
    (left,) = tmp_path.iterdir()
    monkeypatch.undo()
    monkeypatch.setitem(OPTIONS, "classes", 3)
    collect(model, tmp_path / "statistics")
    assert not left.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["statistics"]


def test_bad_input_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(collection, "_count", lambda *_a, **_k: (_ for _ in ()).throw(NotFiniteError("stop")))
    with pytest.raises(NotFiniteError):
        collect(model, tmp_path / "statistics")
    assert not list(tmp_path.iterdir())


def test_what_was_written_before_the_machine_started_is_not_trusted(tmp_path, monkeypatch):
    def write(text: str) -> list[str]:
        with resumable_directory(tmp_path / "out", "key") as work:
            found = sorted(path.name for path in work.iterdir())
            (work / text).write_text(text)
            if text == "first":
                raise RuntimeError("stop")
        return found

    with pytest.raises(RuntimeError):
        write("first")
    monkeypatch.setattr("neuronrank.outputs.boot_id", lambda: "another")
    assert write("second") == ["artifact"]


def test_zarr_files_that_were_half_written_are_removed(tmp_path):
    with pytest.raises(RuntimeError), resumable_directory(tmp_path / "out", "key") as work:
        (work / "artifact/c").mkdir()
        (work / "artifact/c/0.1234.partial").write_text("half")
        (work / "artifact/c/1").write_text("whole")
        raise RuntimeError
    with resumable_directory(tmp_path / "out", "key"):
        pass
    assert files_of(tmp_path / "out").keys() == {"c/1"}


@pytest.mark.parametrize("offered", [True, False])
def test_hidden_states_take_their_space_where_the_disk_cannot_allocate(tmp_path, monkeypatch, offered):
    """Network disks and FAT: glibc then reads and writes a byte of every block; others say that they cannot."""

    def as_glibc(descriptor, offset, length):
        if not offered:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        for place in range(offset, length, 4096):
            os.pread(descriptor, 1, place)
            os.pwrite(descriptor, b"\0", place)
        os.pwrite(descriptor, b"\0", length - 1)

    monkeypatch.setattr(os, "posix_fallocate", as_glibc)
    HiddenStates((1, 1, 40_000), torch.bfloat16, tmp_path).entering(0).fill_(1.5)
    for name in ("hidden-0.bin", "hidden-1.bin"):
        found = (tmp_path / name).stat()
        assert found.st_size == 80_000
        assert found.st_blocks * 512 >= 80_000  # no holes, which a full disk would not fill


def test_hidden_states_are_found_again(tmp_path):
    first = HiddenStates((2, 3, 4), torch.bfloat16, tmp_path)
    first.entering(0).fill_(1.5)
    first.leaving(0)[1] = 2.5
    again = HiddenStates((2, 3, 4), torch.bfloat16, tmp_path)
    assert again.entering(0).eq(1.5).all()
    assert again.entering(1)[1].eq(2.5).all()
    in_memory = HiddenStates((2, 3, 4), torch.bfloat16, None)
    assert in_memory.entering(0) is in_memory.leaving(0)  # one copy
