"""A disk that is full, read-only or limited, met by every stage and command that writes.

Each ends with one message and exit code 1, and what was there before stays as it was, byte for byte.
"""

import contextlib
import importlib
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.test_outputs import hold
from trials.building import built
from trials.steps import STEPS, Step, digest

BY_NAME = {step.name: step for step in STEPS if step.processes == 1}
"""Not two processes that collect: the first of them writes as one alone does."""


def steps(*slow: str) -> list[Any]:
    """Return the names of all, of which some are tried in the slow tests alone."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in BY_NAME]


QUICK = steps("export --compact")  # it writes as export does
FILLED = steps("export --compact", "run", "table")  # some twenty runs with ever more space, each of all stages
PAGE = 4096


@pytest.fixture(scope="module")
def built_project(tmp_path_factory):
    """A finished project; the tests run in its directory, each with an `out/` of its own."""
    root = tmp_path_factory.mktemp("faults")
    with built(root):
        yield root


def run(step: Step) -> Result:
    module, *arguments = step.command()
    command = importlib.import_module("neuronrank.cli" if module == "neuronrank" else module).main
    return CliRunner().invoke(command, arguments)


def refused(result: Result, *reasons: str) -> None:
    """Exit code 1, one message that names the reason, no traceback."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    said = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1, result.output
    assert ": cannot write: " in said[0], said
    assert any(reason in said[0] for reason in reasons), said
    full = "No space left" in said[0]
    cure = "Free space there" if full else "Mend that, or choose another place"
    assert said[0].endswith(f". {cure}, then run again")


@contextlib.contextmanager
def mounted(place: Path, options: str):
    """A small file system in memory at that place; skips where it cannot be mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=False)
    if done.returncode:
        pytest.skip("this machine does not allow mounting")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def out(built_project):
    """An empty `out/`."""
    place = built_project / "out"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    yield place
    shutil.rmtree(place, ignore_errors=True)


def put_earlier(step: Step, out: Path) -> dict[str, str]:
    """Put something that no run writes in the place of every output, and return the digests."""
    for name in () if step.needs_absent else step.outs:
        if "." in name:
            (out / name).write_text('{"earlier": 1}')
        else:
            (out / name).mkdir()
            (out / name / "manifest.json").write_text("{}")  # else collect refuses to replace it
            (out / name / "earlier").write_text("earlier")
    return {name: digest(out / name) for name in step.outs}


def digests(step: Step, out: Path) -> dict[str, str]:
    return {name: digest(out / name) for name in step.outs}


def left_beside(step: Step, out: Path) -> list[str]:
    """Return what lies in `out/` but the outputs and, of a step that goes on with it, its work."""
    names = {path.name for path in out.iterdir()} - {*step.outs, *step.keeps, "filler"}
    own = re.compile(rf"\.{step.outs[0]}\.[0-9a-f]{{16}}\.partial")
    return sorted(name for name in names if not (step.resumes and own.fullmatch(name)))


@pytest.mark.parametrize("name", FILLED)
def test_a_full_disk(built_project, out, name):
    """With ever more space free, until there is enough: every write is refused once."""
    step = BY_NAME[name]
    assert run(step).exit_code == 0
    wanted = digests(step, out)
    with mounted(out, "size=6m"):
        earlier = put_earlier(step, out)
        n_refused, pages = 0, 0
        while True:
            filler = out / "filler"
            filler.unlink(missing_ok=True)
            if pages * PAGE > 1 << 22:
                pytest.fail("it is refused with 4 MiB free")
            filler.write_bytes(b"x" * max(0, shutil.disk_usage(out).free - pages * PAGE))
            done = run(step)
            if done.exit_code == 0:
                break
            refused(done, "No space left on device")
            n_refused += 1
            found = digests(step, out)
            # What took its place before another output was refused is the new one, and the metrics come last.
            assert all(found[one] in (earlier[one], wanted[one]) for one in step.outs), pages
            assert found[step.outs[0]] == earlier[step.outs[0]] or len(step.outs) > 1, pages
            if step.outs[-1] == "metrics.json":
                assert found["metrics.json"] == earlier["metrics.json"], pages
            assert left_beside(step, out) == []
            pages += 1 if pages < 8 else pages // 4
        assert n_refused >= 2
        assert digests(step, out) == wanted
        assert sorted(path.name for path in out.iterdir()) == sorted([*step.outs, *step.keeps, "filler"])


@pytest.mark.parametrize("name", QUICK)
def test_a_read_only_directory(built_project, out, name):
    step = BY_NAME[name]
    with contextlib.ExitStack() as undo:
        if os.geteuid() == 0:
            undo.enter_context(mounted(out, "size=6m"))
        earlier = put_earlier(step, out)
        if os.geteuid() == 0:
            subprocess.run(["mount", "-o", "remount,ro", str(out)], check=True)
        else:
            out.chmod(0o555)
            undo.callback(out.chmod, 0o755)
        refused(run(step), "Read-only file system", "Permission denied")
        assert digests(step, out) == earlier
        assert sorted(path.name for path in out.iterdir()) == sorted(() if step.needs_absent else step.outs)


@pytest.mark.parametrize("name", QUICK)
def test_a_directory_that_is_not_there_and_cannot_be_made(built_project, out, name):
    """Of `out/deeper/<name>` below a file: the refusal names another path than the output's."""
    step = BY_NAME[name]
    out.rmdir()
    out.write_text("a file")
    try:
        refused(run(step), "Not a directory", "File exists")
        assert out.read_text() == "a file"
    finally:
        out.unlink()
        out.mkdir()


@pytest.mark.parametrize("limit", [0, 400])
@pytest.mark.parametrize("name", QUICK)
def test_a_limit_on_the_size_of_files(built_project, out, name, limit):
    """Refused by the system itself, without mounting: at the first write, and at the first of some size."""
    step = BY_NAME[name]
    earlier = put_earlier(step, out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        done = run(step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused(done, "File too large")
    assert digests(step, out) == earlier
    assert left_beside(step, out) == []


@pytest.mark.parametrize("name", QUICK)
def test_a_second_run_of_any_output_is_refused_before_it_works(built_project, out, name):
    step = BY_NAME[name]
    earlier = put_earlier(step, out)
    for held in step.outs:
        with hold(out / held) as holder:
            done = run(step)
            assert done.exit_code == 1, done.output
            assert isinstance(done.exception, SystemExit), done.exception
            said = f"Error: out/{held}: another process (pid {holder.pid}, started as "
            assert said in done.output
            assert done.output.strip().endswith("is writing it. Wait for it to end, then run again")
            assert digests(step, out) == earlier
            assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == [f".{held}.lock"]
            holder.kill()
    assert run(step).exit_code == 0
