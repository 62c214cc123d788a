"""What `make bench` says of its measurements."""

import json

import click
import pytest
from click.testing import CliRunner

from benchmarks import __main__ as bench

TURNS = {
    "forward": [10.0, 20.0, 40.0],
    "collect_wanda": [11.0, 30.0, 42.0],
    "collect_default": [20.0, 30.0, 80.0],
    "score_slowest": [0.2, 0.1, 0.3],
    "prune": [1.0, 2.0, 4.0],
    "sweep": [10.0, 10.0, 10.0],
    "copy_weights": [1.0, 1.0, 1.0],
    "evaluate": [5.0, 5.0, 5.0],
    "bare_evaluation": [5.0, 4.0, 2.0],
}


def found(**changes):
    items = {name: [{"seconds": value, "peak_gib": value / 10} for value in values] for name, values in TURNS.items()}
    for run, one, two in zip(items["score_slowest"], (0.2, 0.1, 0.3), (0.05, 0.06, 0.01), strict=True):
        run["by_recipe"] = {"one": one, "two": two}
    for run in items["sweep"]:
        run["recipes"] = 20
    about = {"windows": 8, "device": None, "processor": "x86_64 (AVX2)", "threads": 2, "versions": {"torch": "2.13.0"}}
    return {"about": {**about, "versions_beside": None}, "stolen_shares": [None] * 3, "items": items, **changes}


def test_a_ratio_is_the_median_of_those_within_a_turn():
    lines = bench.render(found()).splitlines()
    # within turns 1.1, 1.5, 1.05; of the medians it would be 30 / 20 = 1.5
    assert "| calibration for Wanda alone | 30.00 | 11.00, 42.00 | 1.10 x forward | 4.20 |  |" in lines
    assert "| one mask | 2.00 | 1.00, 4.00 | 2.00 x copy_weights | 0.40 |  |" in lines
    assert any("the slowest three of 2 recipes: `one` 0.20, `two` 0.05" in line for line in lines)


def test_a_sweep_is_held_against_as_many_calibrations_and_prunings():
    # (20 x (20 + 1) / 10, ...) = 42, 64, 168; with the collection 420/30, 640/40, 1680/90 = 14, 16, 18.7
    assert "64.0 times as fast, 16.0 times with the one collection counted" in bench.render(found())


def test_another_environment_is_named_where_it_was_used():
    assert "environment of its own" not in bench.render(found())
    items = found()["items"] | {"forward_beside": found()["items"]["forward"]}
    items["llm_compressor_wanda"] = [{"seconds": value, "peak_gib": 1.0} for value in (30.0, 80.0, 200.0)]
    about = found()["about"] | {"versions_beside": {"torch": "2.13.0", "transformers": "5.17.0"}}
    rendered = bench.render(found(items=items, about=about))
    assert "| llm-compressor, one-shot Wanda | 80.00 | 30.00, 200.00 | 4.00 x forward_beside | 1.00 |  |" in rendered
    assert "ran in an environment of its own: torch 2.13.0, transformers 5.17.0." in rendered


def test_the_stolen_share_is_of_the_time_that_was_wanted():
    # user, nice, system, idle, waiting, interrupt, soft interrupt, stolen
    before, after = [100, 0, 50, 1000, 10, 0, 0, 5], [160, 4, 70, 2000, 30, 2, 4, 35]
    assert bench._stolen_share(before, after) == pytest.approx(30 / (60 + 4 + 20 + 2 + 4 + 30))
    assert bench._stolen_share([], []) is None
    rendered = bench.render(found(stolen_shares=[0.25, 0.5, 0.1]))
    assert "In 50% of the time at most that its processors were wanted" in rendered


def test_turns_are_added_to_those_of_the_same_environment_alone(tmp_path, monkeypatch):
    seconds = iter(range(100))
    monkeypatch.setattr(bench, "_measure", lambda _python, name, _windows: measured(name, next(seconds)))

    def run(*options):
        arguments = ["run", "--repeats", "2", "--results", str(tmp_path / "speed.json"), *options]
        return CliRunner().invoke(bench.main, arguments)

    assert run().exit_code == 0
    assert run("--add").exit_code == 0
    kept = json.loads((tmp_path / "speed.json").read_text())
    assert [turn["seconds"] for turn in kept["items"]["forward"]] == [1, 10, 19, 28]  # nine items
    assert len(kept["stolen_shares"]) == 4
    other = run("--add", "--windows", "8")
    assert other.exit_code == 1
    assert "speed.json: measured" in other.output
    assert json.loads((tmp_path / "speed.json").read_text()) == kept


def measured(name, seconds):
    about = {"by_recipe": {"one": 0.1}} if name == "score_slowest" else {"recipes": 20} if name == "sweep" else {}
    return {"seconds": seconds + 1, "peak_gib": 1.0, "versions": {"torch": "2.13.0"}, **about}


def test_packages_that_the_project_does_not_allow_are_refused(monkeypatch):
    bench._require_own_environment()
    monkeypatch.setattr(bench, "version", lambda name: "4.9.0" if name == "transformers" else "99")
    monkeypatch.setattr(bench, "requires", lambda _name: ["torch>=2.6", "transformers>=5.23,<6", "x==1; extra == 'y'"])
    with pytest.raises(
        click.ClickException, match=r"transformers is 4\.9\.0, the project needs transformers<6,>=5\.23"
    ):
        bench._require_own_environment()


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("llmcompressor", "python cannot import what it is to time: ModuleNotFoundError: no llmcompressor"),
        ("benchmarks.items", "python cannot import what it is to time: ModuleNotFoundError: no benchmarks.items"),
        ("benchmarks.__main__", "python cannot import what it is to time: ModuleNotFoundError: no benchmarks.__main__"),
        ("another", "timed"),
    ],
)
def test_an_environment_that_lacks_what_is_timed_is_refused_before_the_first_turn(tmp_path, monkeypatch, lacking, said):
    def timed(*_):
        raise click.ClickException("timed")

    stub = f'case "$2" in *{lacking}*) echo "ModuleNotFoundError: no {lacking}" >&2; exit 1;; esac'
    (tmp_path / "python").write_text(f"#!/bin/sh\n{stub}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(bench, "_measure", timed)
    options = ["--llm-compressor-python", str(tmp_path / "python"), "--results", str(tmp_path / "speed.json")]
    done = CliRunner().invoke(bench.main, ["run", *options])
    assert done.exit_code == 1
    assert said in done.output
