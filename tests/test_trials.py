"""The trials themselves, a few of them."""

import sys

import pytest

from trials import kills
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
