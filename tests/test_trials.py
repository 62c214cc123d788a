"""The trials themselves, a few of them."""

import sys

import pytest

from trials.building import built
from trials.kills import kill_trials, table
from trials.steps import STEPS, digest


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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by a signal")
def test_prune_and_collect_are_killed(tmp_path):
    with built(tmp_path):
        steps = [step for step in STEPS if step.name in ("prune", "collect")]
        found = kill_trials(tmp_path, steps, trials=6, seed=0)
    assert [one["trials"] for one in found.values()] == [3, 3]
    assert not any(one["failures"] for one in found.values()), table(found)
