"""One run of the whole pipeline by DVC, which every end-to-end test begins with a copy of."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuronrank.locks import one_writer
from tests.e2e.repository import Repository, finished
from tests.e2e.warm_python import warm_python


@pytest.fixture(scope="session")
def finished_repository(tiny_model, tiny_texts, tmp_path_factory, worker_id) -> Repository:
    """Every stage has run once, in whichever of the tests' processes comes first. Read only: `repository` is a copy."""
    own = tmp_path_factory.getbasetemp()
    root = (own if worker_id == "master" else own.parent) / "e2e/repository"
    is_finished = root.with_name("is_finished")
    with one_writer(root, wait=True):
        if not is_finished.exists():
            shutil.rmtree(root, ignore_errors=True)  # of one that failed
            finished(root, tiny_model, tiny_texts)
            is_finished.touch()
    return Repository(root)


@pytest.fixture(scope="session")
def warm() -> Iterator[Path]:
    """Where the `python` lies that runs stages from now on."""
    with warm_python() as programs:
        yield programs


@pytest.fixture(scope="module")
def repository(finished_repository, warm, tmp_path_factory) -> Repository:
    """A copy for the tests of one file, who change it as they go."""
    root = tmp_path_factory.mktemp("copy") / "repository"
    shutil.copytree(finished_repository.root, root)
    return Repository(root, warm)
