"""A function on PyTorch's own threads, and on threads of ours where there are none of GNU OpenMP."""

import sys
import threading
from pathlib import Path

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


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch brings GNU OpenMP on Linux alone")
def test_they_are_the_threads_of_pytorch_itself():
    used, seen, together = torch.get_num_threads(), set(), threading.Barrier(2)

    def task() -> None:
        together.wait(timeout=30)
        seen.add(threading.get_native_id())

    torch.set_num_threads(2)
    try:
        torch.rand(10**6).exp()
        before = {int(path.name) for path in Path("/proc/self/task").iterdir()}
        run_on_all_threads(task)
    finally:
        torch.set_num_threads(used)
    assert len(seen) == 2
    assert seen <= before
