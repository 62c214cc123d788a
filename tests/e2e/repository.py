"""A git and DVC repository with the project's own pipeline and tiny parameters."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.imports import ROOT
from tests.project import tiny_params

PROJECT_FILES = (
    *("dvc.yaml", ".dvcignore", ".gitignore", "artifacts/.gitignore"),
    *(f"inputs/{room}/.gitignore" for room in ("model", "tasks", "text")),
)
ALL = {
    "sequential@wanda-50pct",
    "eval_sequential@wanda-50pct",
    *("fetch@model", "fetch@text", "prepare", "collect", "eval_dense", "report"),
    *("score@wanda", "score@hybrid", "prune@wanda-50pct", "prune@hybrid-50pct"),
    *("eval@wanda-50pct", "eval@hybrid-50pct"),
}


class Repository:
    """A git and DVC repository with the project's pipeline and tiny parameters."""

    def __init__(self, root: Path, programs: Path = Path(sys.executable).parent) -> None:
        self.root, self.programs = root, programs
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "AWS_"))},
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(root.parent / "site"),
            "HOME": str(root.parent),
            "PYTHONPATH": str(root / "pipeline"),
            "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        }

    def run(self, *command: str) -> str:
        """Run a command in the repository and return what it printed."""
        done = self.attempt(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def attempt(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail."""
        return subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False)

    def git(self, *command: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
        return self.run("git", *identity, *command)

    def dvc(self, *command: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *command)

    def repro(self, *arguments: str) -> set[str]:
        """Run the pipeline and return the stages that did."""
        return stages_run(self.dvc("repro", *arguments))

    def read_params(self) -> dict:
        return yaml.safe_load((self.root / "params.yaml").read_text())

    def write_params(self, params: dict) -> None:
        (self.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def stages_run(printed: str) -> set[str]:
    """Return the stages that DVC says it runs."""
    return set(re.findall(r"Running stage '([^']+)'", printed))


def finished(root: Path, model: Path, texts: Path) -> Repository:
    """Make a repository in which every stage has run once and everything is committed."""
    root.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("stages", "pipeline"):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignore)
    for name in PROJECT_FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    shutil.copytree(model, root / "inputs/model/tiny")
    shutil.copytree(texts, root / "inputs/text", dirs_exist_ok=True)
    repository = Repository(root)
    repository.write_params(tiny_params(Path("inputs/model/tiny"), Path("inputs/text")))
    repository.git("init", "--quiet")
    repository.dvc("init", "--quiet")
    shutil.copytree(ROOT / ".dvc/plots", root / ".dvc/plots")
    tracked = [str(path.relative_to(root)) for path in sorted((root / "inputs/text").glob("*.jsonl"))]
    repository.dvc("add", "--quiet", "inputs/model/tiny", *tracked)
    assert repository.repro() == ALL
    repository.git("add", ".")
    assert "inputs/text/news.jsonl" not in repository.git("ls-files").split()
    repository.git("commit", "--quiet", "--message", "Everything ran")
    return repository
