"""The trials themselves, a few of them."""

import sys
from dataclasses import asdict
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from trials import flips, kills
from trials.building import built
from trials.kills import faults, kill_trials, table
from trials.steps import STEPS, Step, digest

needs_signals = pytest.mark.skipif(sys.platform != "linux", reason="a limit on the size of files is the moment")


def test_a_digest_tells_names_bytes_kinds_and_empty_directories_apart(tmp_path):
    def tree(name: str, files: dict[str, str], directories: tuple[str, ...] = ()) -> str:
        for path in directories:
            (tmp_path / name / path).mkdir(parents=True)
        for path, text in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text)
        return digest(tmp_path / name)

    found = [
        tree("a", {"x": "1", "y": "2"}),
        tree("b", {"x": "2", "y": "1"}),
        tree("c", {"x": "12", "y": ""}),
        tree("d", {"x": "1", "z": "2"}),
        tree("e", {"x": "1", "y": "2"}, ("empty",)),
        tree("f", {"x/y": "12"}),
        tree("g", {}, ("x",)),
        digest(tmp_path / "absent"),
    ]
    assert len(set(found)) == len(found)
    assert tree("again", {"y": "2", "x": "1"}) == found[0]


def test_metrics_are_compared_without_what_a_run_costs(tmp_path):
    texts = ('{"a": 1, "seconds": 2}', '{"seconds": 3, "peak_rss_mib": 1, "a": 1}', '{"a": 2, "seconds": 2}')
    found = []
    for text in texts:
        (tmp_path / "metrics.json").write_text(text)
        found.append(digest(tmp_path / "metrics.json"))
    assert found[0] == found[1] != found[2]


TORN = "text is neither the earlier nor the new one"


def toy_trials(root, monkeypatch, how: str, trials: int):
    """Kill the toy so many times; its earlier output has other lines."""
    monkeypatch.chdir(root)
    step = Step("toy", "tests.writing_toy", (how, "--out", "out/text"), ("text",))
    return kill_trials(root, [step], trials, seed=0)["toy"]


@needs_signals
def test_a_file_that_is_written_beside_its_place_stays_whole(tmp_path, monkeypatch):
    found = toy_trials(tmp_path, monkeypatch, "whole", 5)
    assert found["kills"] == sum(found["killed"].values()) == 5
    assert found["killed"]["while"] > 0 < found["killed"]["after"]
    assert faults(found) == [], table({"toy": found})


@needs_signals
def test_a_file_that_is_written_in_its_place_is_found_torn(tmp_path, monkeypatch):
    found = toy_trials(tmp_path, monkeypatch, "in-place", 5)
    assert any(TORN in failure for failure in found["failures"]), table({"toy": found})


@needs_signals
def test_a_run_that_ended_before_its_kill_is_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setattr(kills, "_KINDS", ("at an event while",))
    found = toy_trials(tmp_path, monkeypatch, "idle-once", 2)
    assert (found["kills"], found["killed"]["while"], found["drawn_again"]) == (2, 2, 1)
    assert found["failures"] == []


@needs_signals
def test_a_step_that_is_never_killed_while_it_writes_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(kills, "_KINDS", ("at an event after",))
    monkeypatch.setattr(kills, "_INSIDE", ("at an event after",) * 2)
    found = toy_trials(tmp_path, monkeypatch, "whole", 2)
    assert (found["kills"], found["killed"]["after"], found["failures"]) == (2, 2, [])
    assert faults(found) == ["never killed while writing"]
    assert "| toy | 2 | 0 | 0 | 2 | 0 | never killed while writing |" in table({"toy": found})


@pytest.mark.slow
@needs_signals
def test_prune_and_collect_are_killed(tmp_path):
    with built(tmp_path):
        steps = [step for step in STEPS if step.name in ("prune", "collect")]
        found = kill_trials(tmp_path, steps, trials=6, seed=0)
    assert [one["kills"] for one in found.values()] == [3, 3]
    assert not any(faults(one) for one in found.values()), table(found)


@click.command()
@click.argument("how", type=click.Choice(["sound", "never", "silent", "crash"]))
@click.argument("path", type=click.Path(path_type=Path))
def toy_reader(how: str, path: Path) -> None:
    """Refuse a text that was changed, or not."""
    if how == "crash" and path.read_bytes() != TEXT:
        raise ValueError
    if how == "sound" and path.read_bytes() != TEXT:
        raise click.ClickException("changed: 1 faults")
    if how == "silent":
        Path("out/text").write_bytes(path.read_bytes())
    elif how in ("never", "sound"):
        Path("out/text").write_bytes(TEXT)


TEXT = b"a text of some length"


@pytest.mark.parametrize(
    ("verify", "reader", "found"),
    [
        ("sound", "sound", None),
        ("never", "sound", "verify ended with 0"),
        ("crash", "sound", "verify ended with 1"),
        ("sound", "silent", "toy ended with 0"),
        ("sound", "crash", "toy ended with 1"),
        ("sound", "never", "its reader never refused"),
    ],
)
def test_a_byte_that_nobody_notices_is_a_fault(tmp_path, monkeypatch, verify, reader, found):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "artifact").write_bytes(TEXT)
    step = Step("toy", "toy", (), ("text",))
    monkeypatch.setattr(flips, "KINDS", (flips.Kind("text", "artifact", "toy"),))
    monkeypatch.setattr(flips, "STEPS", (step,))
    monkeypatch.setattr(flips, "command_of", lambda _step: (toy_reader, [reader, "artifact"]))
    monkeypatch.setattr(flips, "_run", lambda given: CliRunner().invoke(toy_reader, [verify, given[1]]))
    (title, one), *_ = flips.flip_trials(8, seed=0).items()
    assert (title, one["flips"]) == ("text, read by toy", 8)
    faults_found = flips.faults(title, one)
    assert (tmp_path / "artifact").read_bytes() == TEXT
    if found is None:
        assert (faults_found, one["refused"]) == ([], 8)
    else:
        assert any(found in fault for fault in faults_found), faults_found


def test_a_kind_that_is_never_changed_is_a_fault():
    assert flips.faults("text", asdict(flips.Found())) == ["no byte was changed"]


def test_flips_whose_reader_fails_anyway_prove_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "artifact").write_bytes(b"another text")
    monkeypatch.setattr(flips, "KINDS", (flips.Kind("text", "artifact", "toy"),))
    monkeypatch.setattr(flips, "STEPS", (Step("toy", "toy", (), ("text",)),))
    monkeypatch.setattr(flips, "command_of", lambda _step: (toy_reader, ["sound", "artifact"]))
    monkeypatch.setattr(flips, "_run", lambda given: CliRunner().invoke(toy_reader, ["never", given[1]]))
    with pytest.raises(AssertionError, match="changed: 1 faults"):
        flips.flip_trials(8, seed=0)
