"""A function on PyTorch's own threads, and on threads of ours where there are none of GNU OpenMP."""

import subprocess
import sys
import threading

import pytest
import torch

from neuronrank import team
from neuronrank.team import run_on_all_threads


@pytest.fixture(params=[True, False], ids=["openmp", "threads"])
def openmp(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(team, "_gnu_openmp", lambda: None)
    return request.param


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_so_many_threads_as_pytorch_uses_run_at_once(n_threads, openmp, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    together, seen = threading.Barrier(n_threads), []

    def task() -> None:
        together.wait(timeout=30)  # none gets on before all have come
        seen.append(threading.get_native_id())

    run_on_all_threads(task)
    assert len(set(seen)) == n_threads
    assert threading.get_native_id() in seen


def test_what_a_thread_raises_is_raised_when_all_are_done(openmp, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    together, own, done = threading.Barrier(3), threading.get_native_id(), []

    def task() -> None:
        turn = together.wait(timeout=30)
        if threading.get_native_id() != own:
            raise KeyError(f"of thread {turn}")
        done.append(turn)

    with pytest.raises(KeyError, match="of thread"):
        run_on_all_threads(task)
    assert len(done) == 1


_ON_TWO_THREADS = """
import threading
from pathlib import Path
import torch
from neuronrank import team

together, seen = threading.Barrier(2), set()

def task():
    together.wait(timeout=30)
    seen.add(threading.get_native_id())

torch.set_num_threads(2)
torch.rand(10**6).exp()
before = {int(path.name) for path in Path("/proc/self/task").iterdir()}
team.run_on_all_threads(task)
assert team._gnu_openmp() is not None
assert len(seen) == 2, seen
assert seen <= before, (seen, before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's packages bring GNU OpenMP on Linux alone")
def test_they_are_the_threads_of_pytorch_itself():
    """In a process of its own: here other tests have started threads that look like them."""
    done = subprocess.run([sys.executable, "-c", _ON_TWO_THREADS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_fall_back_to_other_threads_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    team._gnu_openmp.cache_clear()
    try:
        with caplog.at_level("INFO", "neuronrank"):
            assert team._gnu_openmp() is None
    finally:
        team._gnu_openmp.cache_clear()
    assert "holds no GNU OpenMP" in caplog.text
