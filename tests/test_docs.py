"""The documents say what the code does: results, commands, paths."""

import json
import re
import subprocess
import sys
from itertools import product

import pytest
import yaml

from neuronrank import registry
from neuronrank.zero_shot import USUAL_SEVEN, ZeroShotParams
from tests.imports import ROOT

README = (ROOT / "README.md").read_text()
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())


def perplexities(name: str) -> dict:
    return json.loads((ROOT / "metrics/eval" / f"{name}.json").read_text())["perplexity"]


def results_table() -> str:
    """Return the README's table as the committed metrics have it."""
    texts, patterns = sorted(perplexities("dense")), PARAMS["sweep"]["patterns"]
    columns = [(pattern, text) for pattern in patterns for text in texts]
    lines = [
        "| recipe | " + " | ".join(f"{pattern}, {text}" for pattern, text in columns) + " |",
        "|---|" + "---|" * len(columns),
        "| dense | " + " | ".join(f"{perplexities('dense')[text]:.2f}" for _, text in columns) + " |",
    ]
    for recipe in PARAMS["sweep"]["recipes"]:
        cells = (f"{perplexities(f'{recipe}/{pattern}')[text]:.2f}" for pattern, text in columns)
        lines.append(f"| {recipe} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_the_results_in_the_readme_are_the_measured_ones():
    stated = README.split("by a test -->\n")[1].split("\n<!-- end")[0]
    assert stated.strip() == results_table()
    for text in ("wikipedia", "news"):
        assert f"{perplexities('dense')[text]:.2f}" in README.split("<!-- results")[0]
    stored = json.loads((ROOT / "metrics/collect.json").read_text())["artifact_mib"]
    assert f"| {round(stored)} MiB |" in README


def sequential_table() -> str:
    """The measured table: dense statistics against those of pruned layers."""
    ratios = json.loads((ROOT / "metrics/report.json").read_text())["sequential_to_reference"]
    lines = ["| recipe | text | dense statistics | sequential | ratio |", "|---|---|---|---|---|"]
    for recipe, pattern in product(PARAMS["sequential"]["recipes"], PARAMS["sequential"]["patterns"]):
        dense, sequential = perplexities(f"{recipe}/{pattern}"), perplexities(f"{recipe}_sequential/{pattern}")
        for text, ratio in ratios[f"{recipe}_sequential/{pattern}"].items():
            cells = f"{dense[text]:.2f} | {sequential[text]:.2f} | {ratio['value']:.3f}"
            lines.append(f"| {recipe} {pattern} | {text} | {cells} [{ratio['low']:.3f}, {ratio['high']:.3f}] |")
    return "\n".join(lines)


def test_the_sequential_results_in_the_readme_are_the_measured_ones():
    assert README.split("metrics by a test -->\n")[1].split("\n<!-- end of sequential")[0].strip() == sequential_table()


def test_the_protocol_in_the_readme_is_that_of_the_parameters():
    prepare = PARAMS["prepare"]
    assert f"calibrated on {prepare['calibration_windows']} windows of {prepare['window_tokens']} tokens" in README
    assert f"evaluated on {prepare['evaluation_windows']} windows of {prepare['window_tokens']} tokens" in README
    assert f"seed {prepare['seed']}" in README


def test_methods_rules_and_architectures_are_all_named():
    for room in ("scoring", "masks", "models"):
        for name in registry.names(room):
            assert f"`{name}`" in README


def test_the_usual_tasks_and_the_parameters_of_zero_shot_are_named():
    section = README.split("## Zero-shot")[1].split("\n## ")[0]
    for name in (*USUAL_SEVEN, *ZeroShotParams.model_fields):
        assert re.search(rf"\b{name}\b", section), name


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for document in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"^make (\S+)", (ROOT / document).read_text(), re.MULTILINE):
            assert f"\n{target}:" in makefile, target


def test_ci_calls_the_test_command_of_the_readme():
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert "make test " in README


_COMMANDS = ("export", "check", "methods", "size", "inspect", "diff", "verify", "topics")
_IMATRIX_COMMANDS = ("import-imatrix", "export-imatrix")


@pytest.mark.parametrize("command", [*_COMMANDS, *_IMATRIX_COMMANDS])
def test_every_command_has_help_with_an_example(command):
    shown = subprocess.run(
        [sys.executable, "-m", "neuronrank", command, "--help"], capture_output=True, text=True, check=True
    )
    assert f"Example: neuronrank {command}" in shown.stdout


def test_the_example_of_reading_an_artifact_runs(finished_project, monkeypatch):
    example = README.split("```python\n")[1].split("```")[0]
    example = example.replace("[3]", "[1]").replace("tap(3,", "tap(1,")  # the tiny model has two layers
    monkeypatch.chdir(finished_project.root)
    names: dict = {}
    exec(example, names)
    assert names["tap"].total("sum_abs").shape == (40,)
    assert names["stats"]["neuron/sum_abs"][1].shape == (12, 40)


TRAPS = (ROOT / "docs/TRAPS.md").read_text()


def test_every_trap_names_tests_that_exist():
    rows = [line for line in TRAPS.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 16
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row.split("|")[4])
        assert named, row
        for path, name in named:
            assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{name}"


def test_every_test_of_a_trap_is_named():
    for name in re.findall(r"^def (test_\w+)", (ROOT / "tests/test_traps.py").read_text(), re.MULTILINE):
        assert f"`tests/test_traps.py::{name}`" in TRAPS, name
