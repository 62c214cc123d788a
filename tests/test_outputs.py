"""Outputs appear whole or not at all, in one step, on the disk, and from one process at a time."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from neuronrank import outputs, storage
from neuronrank.errors import ArtifactError, ParamsError, SourceError, StorageError
from neuronrank.files import read_json, write_json
from neuronrank.locks import one_writer
from neuronrank.outputs import new_output, output_directory, output_file, resumable_directory
from tests.imports import ROOT


def put(out: Path, **texts: str) -> None:
    with output_directory(out) as partial:
        for name, text in texts.items():
            (partial / name).write_text(text)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


@pytest.fixture(params=["one step", "two steps"])
def either_way(request, monkeypatch):
    """With and without the exchange of two directories in one step."""
    if request.param == "two steps":
        monkeypatch.setattr(storage, "_renameat2", lambda: None)
    return request.param


def test_a_failed_directory_leaves_the_earlier_one_and_no_litter(tmp_path, either_way):
    put(tmp_path / "out", a="first")
    for error in (RuntimeError("stop"), ParamsError("stop"), KeyboardInterrupt()):
        with pytest.raises(type(error)), output_directory(tmp_path / "out") as partial:
            (partial / "a").write_text("second")
            raise error
    assert contents(tmp_path / "out") == {"a": "first"}
    assert names(tmp_path) == ["out"]


def test_an_error_of_ours_leaves_the_earlier_file_and_no_litter(tmp_path):
    write_json(tmp_path / "out.json", 1)
    with pytest.raises(ParamsError), output_file(tmp_path / "out.json") as partial:
        partial.write_text("2")
        raise ParamsError("stop")
    assert contents(tmp_path) == {"out.json": "1\n"}


def test_a_finished_directory_replaces_the_earlier_one_whole(tmp_path, either_way):
    put(tmp_path / "out", a="a", both="1")
    put(tmp_path / "out", b="b", both="2")
    assert contents(tmp_path / "out") == {"b": "b", "both": "2"}
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("there", ["file", "link", "empty"])
def test_what_is_no_directory_of_ours_is_replaced_as_well(tmp_path, either_way, there):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept").write_text("kept")
    out = tmp_path / "out"
    {"file": out.touch, "empty": out.mkdir, "link": lambda: out.symlink_to("elsewhere")}[there]()
    put(out, a="a")
    assert not out.is_symlink()
    assert contents(out) == {"a": "a"}
    assert contents(tmp_path / "elsewhere") == {"kept": "kept"}
    assert names(tmp_path) == ["elsewhere", "out"]


@pytest.mark.skipif(storage._renameat2() is None, reason="this system cannot exchange two directories in one step")
def test_the_path_is_there_at_every_moment_and_never_of_both(tmp_path):
    """A reader that opens the directory once finds it each time, and in it the files of one writing alone."""
    out, stop, seen = tmp_path / "out", threading.Event(), []
    put(out, first="0", second="0")

    def read() -> None:
        while not stop.is_set():
            try:
                held = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                seen.append("absent")
                continue
            try:
                found = [os.open(name, os.O_RDONLY, dir_fd=held) for name in ("first", "second")]
            except FileNotFoundError:  # it was replaced meanwhile, and is being deleted
                continue
            finally:
                os.close(held)
            texts = {os.read(file, 10) for file in found}
            [os.close(file) for file in found]
            seen.append("mixed" if len(texts) > 1 else "whole")

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 201):
        put(out, first=str(number), second=str(number))
    stop.set()
    reader.join()
    assert set(seen) == {"whole"}
    assert len(seen) > 100


def test_a_rename_that_fails_puts_the_earlier_directory_back(tmp_path, monkeypatch):
    put(tmp_path / "out", a="first")
    rename = Path.rename

    def refuse(path, target):
        if path.name.endswith(".partial"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(storage, "_renameat2", lambda: None)
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StorageError):
        put(tmp_path / "out", a="second")
    assert contents(tmp_path / "out") == {"a": "first"}
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM])
def test_where_the_exchange_is_not_offered_two_renames_do(tmp_path, monkeypatch, code):
    put(tmp_path / "out", a="first")
    monkeypatch.setattr(storage, "_renameat2", lambda: lambda *_a: -1)
    monkeypatch.setattr("ctypes.get_errno", lambda: code)
    put(tmp_path / "out", a="second")
    assert contents(tmp_path / "out") == {"a": "second"}
    assert names(tmp_path) == ["out"]


def test_an_exchange_that_the_disk_refuses_is_told(tmp_path, monkeypatch):
    put(tmp_path / "out", a="first")
    monkeypatch.setattr(storage, "_renameat2", lambda: lambda *_a: -1)
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EIO)
    with pytest.raises(StorageError, match="out: cannot write: Input/output error"):
        put(tmp_path / "out", a="second")
    assert contents(tmp_path / "out") == {"a": "first"}
    assert names(tmp_path) == ["out"]


KILLED = """
import os, sys
from pathlib import Path
from neuronrank import storage
from neuronrank.outputs import output_directory
at, out = sys.argv[1], Path(sys.argv[2])
die = lambda: os.kill(os.getpid(), 9)
rename, remove, settle = Path.rename, storage.remove, storage.settle
if at != "exchanged":
    storage._renameat2 = lambda: None
if at == "between":
    Path.rename = lambda path, target: rename(path, target) and die()
if at in ("exchanged", "renamed"):
    storage.sync_directory = lambda path: die() if path == out.parent and (out / "new").exists() else None
with output_directory(out) as partial:
    (partial / "new").write_text("new")
    if at == "filling":
        die()
"""


def killed(script: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=False, env=environment())
    assert done.returncode == -signal.SIGKILL


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'pipeline'}:{ROOT}"}


@pytest.mark.parametrize(
    ("at", "left", "found"),
    [
        ("filling", [".out.lock", ".out.partial", "out"], {"old": "old"}),
        ("between", [".out.lock", ".out.old", ".out.partial"], None),
        ("renamed", [".out.lock", ".out.old", "out"], {"new": "new"}),
        ("exchanged", [".out.lock", ".out.partial", "out"], {"new": "new"}),
    ],
)
def test_the_next_run_mends_what_a_killed_one_left(tmp_path, at, left, found):
    if at == "exchanged" and storage._renameat2() is None:
        pytest.skip("this system cannot exchange two directories in one step")
    out = tmp_path / "out"
    put(out, old="old")
    killed(KILLED, at, str(out))
    assert names(tmp_path) == left
    if found:
        assert contents(out) == found
    with pytest.raises(ParamsError), output_directory(out):  # a next run that fails mends it as well
        assert contents(out) == (found or {"old": "old"})
        raise ParamsError("stop")
    assert contents(out) == (found or {"old": "old"})
    assert names(tmp_path) == ["out"]


class Killed(BaseException):
    """Nothing of ours catches it."""


def kill(*_arguments):
    raise Killed


def write_second_until(out, step, monkeypatch):
    """Write a second artifact, and be killed at a step of its way to its place."""
    with monkeypatch.context() as patch:
        patch.setattr(outputs, step, kill)
        with pytest.raises(Killed), resumable_directory(out, "second") as work:
            (work / "artifact/manifest.json").write_text("second")


def test_a_complete_artifact_on_its_way_is_gone_on_with(tmp_path, monkeypatch):
    """Killed after it left the work directory and before it took its place: nothing is done again."""
    out = tmp_path / "out"
    put(out, **{"manifest.json": "first"})
    write_second_until(out, "take_place", monkeypatch)
    assert contents(out) == {"manifest.json": "first"}
    with resumable_directory(out, "second") as work:
        assert contents(work / "artifact") == {"manifest.json": "second"}
    assert contents(out) == {"manifest.json": "second"}
    assert names(tmp_path) == ["out"]


def test_an_artifact_that_took_its_place_is_not_gone_on_with(tmp_path, monkeypatch):
    """Killed right after the exchange, and run again: the earlier artifact's files are not where work goes on."""
    out = tmp_path / "out"
    with resumable_directory(out, "first") as work:
        (work / "artifact/manifest.json").write_text("first")
        (work / "artifact/only-first").write_text("first")

    write_second_until(out, "settle", monkeypatch)
    assert contents(out) == {"manifest.json": "second"}
    with resumable_directory(out, "second") as work:
        assert names(work / "artifact") == []
        (work / "artifact/manifest.json").write_text("second")
    assert contents(out) == {"manifest.json": "second"}
    assert names(tmp_path) == ["out"]


def test_work_of_another_output_whose_name_begins_alike_stays(tmp_path):
    others = [".out.json.partial", ".out.2.0123456789abcdef.partial", "[out].0123456789abcdef.partial"]
    mine = [".out.0123456789abcdef.partial", ".out.partial"]
    for name in (*others, *mine):
        (tmp_path / name).mkdir()
    with resumable_directory(tmp_path / "out", "key") as work:
        assert names(tmp_path) == sorted([*others, ".out.lock", work.name])
        (work / "artifact/manifest.json").touch()
    assert names(tmp_path) == sorted([*others, "out"])


def test_what_must_not_exist_is_refused_and_the_work_of_an_interrupted_run_stays(tmp_path):
    """Merging onto an artifact that is being collected anew must not cost the hours of that collection."""
    out, work = tmp_path / "out", tmp_path / ".out.0123456789abcdef.partial"
    put(out, **{"manifest.json": "first"})
    (work / "artifact").mkdir(parents=True)
    (tmp_path / ".out.fedcba9876543210.partial").mkdir()  # of a run that had ended: its artifact took its place
    with pytest.raises(SourceError, match="already exists; choose another place or delete it first"), new_output(out):
        pass
    assert names(tmp_path) == [work.name, "out"]
    assert names(work) == ["artifact"]


def test_a_complete_artifact_on_its_way_is_kept_by_what_must_not_exist(tmp_path, monkeypatch):
    out = tmp_path / "out"
    put(out, **{"manifest.json": "first"})
    write_second_until(out, "take_place", monkeypatch)
    with pytest.raises(SourceError), new_output(out):
        pass
    with resumable_directory(out, "second") as work:
        assert contents(work / "artifact") == {"manifest.json": "second"}


def test_an_output_that_appeared_meanwhile_is_neither_replaced_nor_deleted(tmp_path):
    """Two runs that both begin where nothing is: the second one is refused, before and after the first has ended."""
    out = tmp_path / "out"
    with new_output(out):
        with pytest.raises(StorageError, match="is writing it"), in_another_thread(out):
            pass
        put(out, first="1")
    with pytest.raises(SourceError, match="already exists"), new_output(out):
        put(out, second="2")
    assert contents(out) == {"first": "1"}


def test_an_error_of_ours_is_told_though_cleaning_fails(tmp_path, monkeypatch):
    def refuse(_path):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))  # as network file systems do

    with pytest.raises(ArtifactError, match="bad input"), resumable_directory(tmp_path / "out", "key"):
        monkeypatch.setattr(outputs, "remove", refuse)
        raise ArtifactError("bad input")


def test_what_a_killed_run_left_is_cleaned_by_the_writer_of_a_file_too(tmp_path):
    (tmp_path / ".out.json.partial").mkdir()
    (tmp_path / ".out.json.partial/half").touch()
    (tmp_path / ".out.json.old").touch()
    (tmp_path / ".out.json.lock").write_text("1\nkilled\n")
    write_json(tmp_path / "out.json", 1)
    assert contents(tmp_path) == {"out.json": "1\n"}


def kind(descriptor: int) -> str:
    return "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"


@pytest.fixture
def steps(monkeypatch):
    """What is synced and renamed, in order."""
    told: list[str] = []
    fsync, replace, place = os.fsync, Path.replace, outputs.take_place

    def path_of(descriptor: int) -> str:
        return Path(f"/proc/self/fd/{descriptor}").readlink().name

    monkeypatch.setattr(os, "fsync", lambda fd: told.append(f"{kind(fd)} {path_of(fd)}") or fsync(fd))
    monkeypatch.setattr(Path, "replace", lambda one, other: told.append("rename") or replace(one, other))
    monkeypatch.setattr(outputs, "take_place", lambda one, other: told.append("rename") or place(one, other))
    return told


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to see which files are synced")
def test_content_is_on_the_disk_before_the_rename_and_the_rename_after_it(tmp_path, steps):
    there = tmp_path / "there"
    there.mkdir()
    with output_file(there / "out") as partial:
        partial.write_text("a")
    assert steps == ["file .out.partial", "rename", "directory there"]
    steps.clear()
    with output_directory(there / "tree") as partial:
        (partial / "b").mkdir()
        write_json(partial / "b/c.json", 1)
    assert steps == ["rename", "directory b", "file c.json", "directory .tree.partial", "rename", "directory there"]
    steps.clear()
    with output_file(there / "new/deeper/out") as partial:  # directories that were made, each in the one above it
        partial.write_text("a")
    assert steps == ["directory new", "directory there", "file .out.partial", "rename", "directory deeper"]


HOLDER = """
import sys, time
from pathlib import Path
from neuronrank.locks import one_writer
with one_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen:
    """Hold an output in another process, until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holder = subprocess.Popen(command, env=environment(), text=True, **pipes)
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_writer_is_told_who_the_first_is_until_that_is_killed(tmp_path):
    out = tmp_path / "out"
    put(out, a="first")
    with hold(out) as holder:
        for write in (output_directory, output_file, lambda path: resumable_directory(path, "key")):
            said = rf"out: another process \(pid {holder.pid}, started as \S*python\S* -c .+\) is writing it\. Wait for"
            with pytest.raises(StorageError, match=said), write(out):
                pytest.fail("it was let in")
        assert contents(out) == {"a": "first"}
        assert names(tmp_path) == [".out.lock", "out"]
        put(tmp_path / "other", a="another output is not held")
        holder.kill()
    put(out, a="second")
    assert contents(out) == {"a": "second"}
    assert names(tmp_path) == ["other", "out"]


def test_a_writer_that_waits_is_let_in_when_the_first_ends(tmp_path):
    with hold(tmp_path / "out") as holder:
        threading.Timer(0.3, holder.stdin.close).start()
        with one_writer(tmp_path / "out", wait=True) as waited:
            assert waited
            holder.wait(20)
            with pytest.raises(StorageError, match=f"pid {os.getpid()}"), in_another_thread(tmp_path / "out"):
                pass
    with one_writer(tmp_path / "out", wait=True) as waited:
        assert not waited
    assert names(tmp_path) == []


class in_another_thread:  # noqa: N801 - reads as a function
    """Write an output in a thread of its own, and raise here what it raises."""

    def __init__(self, out: Path) -> None:
        self._out, self._raised = out, []

    def _write(self) -> None:
        try:
            put(self._out, a="a")
        except StorageError as err:
            self._raised.append(err)

    def __enter__(self) -> None:
        thread = threading.Thread(target=self._write)
        thread.start()
        thread.join()
        if self._raised:
            raise self._raised[0]

    def __exit__(self, *_error: object) -> None:
        pass


def test_writers_that_take_turns_never_hold_it_together(tmp_path):
    """Four processes open, lock and delete the lock file as fast as they can: no two are inside at once."""
    script = """
import os, sys
from pathlib import Path
from neuronrank.locks import one_writer
out, mark = Path(sys.argv[1]) / "out", Path(sys.argv[1]) / "inside"
for _ in range(150):
    with one_writer(out, wait=True):
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        mark.unlink()
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    running = [subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(4)]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in running]
    assert ended == [("", 0)] * 4
    assert names(tmp_path) == []


def test_an_output_held_by_the_stage_is_written_in_it(tmp_path):
    out = tmp_path / "deep/er/out"
    with one_writer(out):
        put(out, a="1")
        put(out, a="2")
        assert (tmp_path / "deep/er/.out.lock").exists(), "held until the outer block ends"
    assert contents(out) == {"a": "2"}
    with pytest.raises(ParamsError), one_writer(tmp_path / "new/out"):
        raise ParamsError("stop")
    assert names(tmp_path) == ["deep"], "no directory is left that was made for nothing"


def test_programs_that_are_started_do_not_keep_the_lock(tmp_path):
    with one_writer(tmp_path / "out"):
        sleeping = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with one_writer(tmp_path / "out") as waited:
            assert not waited
    finally:
        sleeping.kill()
        sleeping.wait()


def test_a_lock_that_cannot_be_written_leaves_no_litter(tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(StorageError, match="out: cannot write: No space left on device"):
        put(tmp_path / "deep/out", a="a")
    assert names(tmp_path) == []


def test_a_directory_in_which_nothing_can_be_made_is_told(tmp_path):
    """As /proc: it is there, and says of every new file that there is no such directory."""
    with pytest.raises(StorageError, match="no file can be made in /proc"):
        put(Path("/proc/out"), a="a")


def test_a_file_does_not_take_the_place_of_a_directory(tmp_path):
    (tmp_path / "out/kept").mkdir(parents=True)
    with pytest.raises(StorageError, match="out: is a directory, and a file is to be written there"):
        write_json(tmp_path / "out", 1)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["kept"]


def test_metrics_that_cannot_be_written_are_told_before_the_work(tmp_path):
    import click
    from click.testing import CliRunner

    from stages._command import OutPath, stage_command

    @stage_command("score", "example")
    @click.option("--out", type=OutPath)
    def work(out, params):
        raise AssertionError("it worked")

    (tmp_path / "params.yaml").touch()
    (tmp_path / "metrics.json").mkdir()
    files = {"--out": "out", "--metrics": "metrics.json", "--params": "params.yaml"}
    done = CliRunner().invoke(work, [word for option, name in files.items() for word in (option, str(tmp_path / name))])
    assert done.exit_code == 1
    assert "metrics.json: is a directory, and a file is to be written there" in done.output


def test_a_file_system_without_locks_is_told_and_written(tmp_path, monkeypatch, caplog):
    def refuse(*_arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    put(tmp_path / "out", a="a")
    assert "out: its file system has no locks" in caplog.text
    assert names(tmp_path) == ["out"]


def test_a_refused_read_elsewhere_is_not_told_as_a_write(tmp_path):
    with pytest.raises(PermissionError), output_file(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "no", "/elsewhere/input")


@pytest.mark.parametrize("source", ["/elsewhere/out.txt", "/elsewhere/out", "outer", ".outer.partial"])
def test_an_input_whose_name_holds_the_outputs_is_not_taken_for_it(tmp_path, source):
    with pytest.raises(PermissionError), output_file(tmp_path / "out"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / source))


def test_the_refusal_names_the_file_that_it_is_of(tmp_path):
    """A lock of another user is no full disk."""
    with pytest.raises(StorageError) as told, output_file(tmp_path / "out"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / ".out.lock"))
    assert f"out: cannot write: Permission denied ({tmp_path / '.out.lock'}). Nothing half-written" in str(told.value)
    assert str(told.value).endswith("Mend that, or choose another place, then run again")


@pytest.mark.parametrize(("place", "reason"), [(".", "ends in no name"), ("/", "ends in no name"), ("a/..", "no name")])
def test_a_path_without_a_name_of_its_own_is_no_output(place, reason):
    with pytest.raises(StorageError, match=reason):
        put(Path(place), a="a")


def test_a_name_that_leaves_no_room_for_work_beside_it_is_told(tmp_path):
    with pytest.raises(StorageError, match="cannot write: File name too long"):
        put(tmp_path / ("a" * 252), a="a")


def test_a_copy_that_fails_is_of_its_target_though_its_source_is_named_first(tmp_path):
    with (
        pytest.raises(StorageError, match="out: cannot write: No space"),
        output_directory(tmp_path / "out") as partial,
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/elsewhere/input", None, str(partial / "copy"))


def test_a_parent_that_is_a_file_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file/out", "file/deep/out"):
        with pytest.raises(StorageError, match=r"out: cannot write: (Not a directory|File exists)"):
            put(tmp_path / place, a="a")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EFBIG])
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
    assert names(tmp_path) == ["out.json"]


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), output_file(tmp_path / "out"):
        raise FileNotFoundError(errno.ENOENT, "elsewhere")


def test_an_input_that_cannot_be_read_is_one_line(tmp_path):
    import click
    from click.testing import CliRunner

    from stages._command import OutPath, stage_command

    @stage_command("score", "example")
    @click.option("--out", type=OutPath)
    def work(out, params):
        with output_file(out):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/elsewhere/input")

    (tmp_path / "params.yaml").touch()
    files = {"--out": "out", "--metrics": "metrics.json", "--params": "params.yaml"}
    done = CliRunner().invoke(work, [word for option, name in files.items() for word in (option, str(tmp_path / name))])
    assert (done.exit_code, done.output) == (1, "Error: /elsewhere/input: Permission denied\n")
    assert names(tmp_path) == ["params.yaml"]


def test_only_the_first_process_of_a_run_holds_its_outputs(tmp_path, monkeypatch):
    import click
    from click.testing import CliRunner

    from stages._command import OutPath, stage_command

    @stage_command("collect", "example")
    @click.option("--out", type=OutPath)
    def work(out, params):
        click.echo(f"held {names(tmp_path)}")
        return {}

    (tmp_path / "params.yaml").touch()
    files = {"--out": "out", "--metrics": "metrics.json", "--params": "params.yaml"}
    arguments = [word for option, name in files.items() for word in (option, str(tmp_path / name))]
    for rank, held in (("0", [".metrics.json.lock", ".out.lock"]), ("1", [])):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        assert CliRunner().invoke(work, arguments).output == f"held {[*held, 'params.yaml']}\n"
        assert names(tmp_path) == ["params.yaml"]
