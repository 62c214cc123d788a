"""One run of the whole pipeline by DVC, which every end-to-end test begins with a copy of."""

import shutil

import pytest

from tests.e2e.repository import Repository, finished


@pytest.fixture(scope="session")
def finished_repository(tiny_model, tiny_texts, tmp_path_factory) -> Repository:
    """Every stage has run once. Read only: `repository` is a copy."""
    return finished(tmp_path_factory.mktemp("e2e") / "repository", tiny_model, tiny_texts)


@pytest.fixture(scope="module")
def repository(finished_repository, tmp_path_factory) -> Repository:
    """A copy for the tests of one file, who change it as they go."""
    root = tmp_path_factory.mktemp("copy") / "repository"
    shutil.copytree(finished_repository.root, root)
    return Repository(root)
